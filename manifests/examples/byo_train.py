"""A small classifier in somebody's own loop. Piton is the four lines that say `session`."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import piton_trainer

torch.manual_seed(7)

# Two interleaved spirals, and which of them a point lies on.
turn = torch.rand(1024, generator=torch.Generator().manual_seed(1)) * 9
side = torch.arange(1024) % 2
angle = turn + side * torch.pi
data = TensorDataset(torch.stack([turn * angle.cos(), turn * angle.sin()], dim=1) / 9, side)
loader = DataLoader(data, batch_size=64, shuffle=True)

model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Dropout(0.05), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=15 * len(loader))

with piton_trainer.session() as session:
    session.restore(model=model, optimizer=optimizer, scheduler=scheduler, loader=loader)
    for points, labels in session.steps(loader, epochs=15):
        loss = nn.functional.cross_entropy(model(points), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        session.report(loss=loss)
