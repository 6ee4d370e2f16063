"""A small real training that takes as long as it is told, so that machines can be lost at any moment of it.

    python paced.py STEPS SECONDS_PER_STEP

The weights in the end depend on STEPS alone. The wait stands for a GPU's work: eight of these fit on one core. The file
`hurry` in the checkpoint directory ends all waits: a test has the time that it needs, and no more, on any machine.
"""

import os
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import piton_trainer

steps, seconds_per_step = int(sys.argv[1]), float(sys.argv[2])
hurry = Path(os.environ["PITON_CHECKPOINT_DIR"]) / "hurry"
torch.set_num_threads(1)
torch.manual_seed(7)

points = torch.randn(512, 16, generator=torch.Generator().manual_seed(1))
loader = DataLoader(TensorDataset(points, points.roll(1, dims=1).prod(dim=1).sign()), batch_size=32, shuffle=True)
model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)

with piton_trainer.session() as session:
    session.restore(model=model, optimizer=optimizer, scheduler=scheduler, loader=loader)
    for inputs, wanted in session.steps(loader, total=steps):
        time.sleep(0 if hurry.exists() else seconds_per_step)
        loss = nn.functional.soft_margin_loss(model(inputs).squeeze(1), wanted)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step()
        session.report(loss=loss)
