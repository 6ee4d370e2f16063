"""A small language model in somebody's transformers.Trainer. Piton is the callback."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from piton_trainer.integrations.transformers import PitonCallback

torch.manual_seed(7)

# Sums that count in circles: whoever has understood them can go on with any of them.
starts = torch.arange(512).unsqueeze(1)
rows = (starts + torch.arange(16) * (1 + starts % 5)) % 64
data = [{"input_ids": row, "labels": row} for row in rows]

model = GPT2LMHeadModel(
    GPT2Config(vocab_size=64, n_positions=16, n_embd=64, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
)
args = TrainingArguments(
    "out", num_train_epochs=4, per_device_train_batch_size=32, learning_rate=3e-3, logging_steps=10, save_strategy="no"
)
Trainer(model=model, args=args, train_dataset=data, callbacks=[PitonCallback()]).train()
