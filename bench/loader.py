"""What the pipeline of `resnet50` costs: its batches, and bare decoding of the same JPEGs by as many threads, in turns.

Bare is what nobody can do without: Pillow opens the bytes, decodes, cuts the middle, resizes. The loader adds the file
of records, its checksums, the order, random crops and the batch. Prints a table, and as its last line one JSON object
with the median of the ratios (images a second of the loader over bare ones; 1 is the best there is).
"""

import io
import json
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from piton_trainer.data.image.images import ShuffledImages
from piton_trainer.data.image.pictures import from_file
from piton_trainer.data.image.record_writer import Recorder
from piton_trainer.data.image.records import About, Records
from piton_trainer.runtime.resources import cores

HEIGHT, WIDTH, SIZE = 375, 500, 224
IMAGES, BATCH, STEPS, ROUNDS = 256, 64, 12, 9


def a_jpeg(number: int) -> bytes:
    """As large, in pixels and bytes, as an image of ImageNet is on average."""
    coarse = np.random.default_rng(number).integers(256, size=(HEIGHT // 5, WIDTH // 5, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def write(path: Path, files: list[bytes]) -> Records:
    """The file that the loader reads."""
    with Recorder(path, About(source="bench")) as recorder:
        for file in files:
            recorder.append(from_file(file, 0, max_side=None, quality=90))
        recorder.finish()
    return Records(path)


def bare(content: bytes) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """A JPEG's middle as pixels."""
    left, top = (WIDTH - HEIGHT) // 2, 0
    image = Image.open(io.BytesIO(content))
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=(left, top, left + HEIGHT, HEIGHT)))


def a_loader(records: Records, threads: int) -> ShuffledImages:
    """As the recipe builds it. Crops are large, so that what is resized is about as large as the middle."""
    return ShuffledImages(
        records,
        count=len(records),
        device_batch=BATCH,
        total_batch=BATCH,
        size_at=lambda _: SIZE,
        min_area=0.6,
        flip=True,
        window=1 << 16,
        seed=0,
        threads=threads,
    )


def bare_speed(files: list[bytes], pool: ThreadPoolExecutor) -> float:
    """Images a second without a loader."""
    wanted = (files * (BATCH * STEPS // len(files) + 1))[: BATCH * STEPS]
    start = time.perf_counter()
    for _ in pool.map(bare, wanted):
        pass
    return BATCH * STEPS / (time.perf_counter() - start)


def loader_speed(loader: ShuffledImages) -> float:
    """Images a second of a loader that is under way; its threads are done when this returns."""
    steps = iter(loader)
    next(steps)
    start = time.perf_counter()
    for _ in islice(steps, STEPS):
        pass
    speed = BATCH * STEPS / (time.perf_counter() - start)
    del steps
    for thread in threading.enumerate():
        if thread.name.startswith("piton-decode"):
            thread.join()
    return speed


def main() -> None:
    """Measure, and print."""
    files, threads = [a_jpeg(number) for number in range(IMAGES)], cores()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(threads) as pool:
        records = write(Path(folder) / "bench.records", files)
        rounds = [(bare_speed(files, pool), loader_speed(a_loader(records, threads))) for _ in range(ROUNDS)]
    ratios = [loader / alone for alone, loader in rounds]
    kilobytes = statistics.mean(len(file) for file in files) / 1000
    print(f"{threads} threads, JPEGs of {WIDTH} x {HEIGHT} pixels and {kilobytes:.0f} kB, shown at {SIZE}")
    print(f"{'bare, images/s':>16}{'loader, images/s':>18}{'ratio':>8}")
    for (alone, loader), ratio in zip(rounds, ratios, strict=True):
        print(f"{alone:16.0f}{loader:18.0f}{ratio:8.2f}")
    print(json.dumps({"threads": threads, "median_ratio": round(statistics.median(ratios), 3)}))


if __name__ == "__main__":
    main()
