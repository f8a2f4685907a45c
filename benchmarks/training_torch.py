"""The PyTorch side of benchmarks/training.py: its networks and steps, written plainly.

Runs in a Python of its own, which has torch and nothing of ours, and answers as `blocks.serve`
says. Tensors are channels-last, which is the faster layout for these networks.
"""

from __future__ import annotations

import json
import sys

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import blocks

CLASSES = 100


def convolution(inputs: int, outputs: int, size: int, stride: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)


def mobilenet(width: float, stem_stride: int) -> tuple[nn.Module, int]:
    """MobileNet v1 (Howard et al., 2017, Table 1) and the length of its embedding."""
    full = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
    strides = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
    channels = [int(c * width) for c in full]
    layers = [convolution(3, channels[0], 3, stem_stride), nn.BatchNorm2d(channels[0]), nn.ReLU6()]
    for before, after, stride in zip(channels, channels[1:], strides, strict=False):
        layers += [convolution(before, before, 3, stride, before), nn.BatchNorm2d(before)]
        layers += [nn.ReLU6(), convolution(before, after, 1, 1), nn.BatchNorm2d(after), nn.ReLU6()]
    return nn.Sequential(*layers), channels[-1]


class WideBlock(nn.Module):
    """Batch norm and ReLU before each of two convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = convolution(inputs, outputs, 3, stride)
        self.conv2 = convolution(outputs, outputs, 3, 1)
        self.shortcut = None if inputs == outputs else convolution(inputs, outputs, 1, stride)

    def forward(self, x):
        activated = F.relu(self.norm1(x))
        y = self.conv2(F.relu(self.norm2(self.conv1(activated))))
        return y + (self.shortcut(activated) if self.shortcut else x)


class BasicBlock(nn.Module):
    """Two convolutions with batch norm; new channels of the shortcut are zero (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.stride, self.new = stride, outputs - inputs
        self.norm1, self.norm2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.conv1 = convolution(inputs, outputs, 3, stride)
        self.conv2 = convolution(outputs, outputs, 3, 1)

    def forward(self, x):
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new))
        return F.relu(y + shortcut)


def groups(block: type[nn.Module], count: int, width: int) -> list[nn.Module]:
    """Three groups of blocks on 16 channels: 16, 32 and 64 times the width."""
    layers, before = [], 16
    for group in range(3):
        for index in range(count):
            after = 16 * width * 2**group
            layers.append(block(before, after, 2 if group and index == 0 else 1))
            before = after
    return layers


def wide_resnet(depth: int, width: int) -> tuple[nn.Module, int]:
    """WRN-depth-width (Zagoruyko & Komodakis, 2016) and the length of its embedding."""
    layers = groups(WideBlock, (depth - 4) // 6, width)
    end = [nn.BatchNorm2d(64 * width), nn.ReLU()]
    return nn.Sequential(convolution(3, 16, 3, 1), *layers, *end), 64 * width


def cifar_resnet(depth: int) -> tuple[nn.Module, int]:
    """ResNet-depth for CIFAR (He et al., 2016) and the length of its embedding."""
    layers = groups(BasicBlock, (depth - 2) // 6, 1)
    stem = [convolution(3, 16, 3, 1), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, *layers), 64


FAMILIES = {"MobileNet": mobilenet, "WideResNet": wide_resnet, "CifarResNet": cifar_resnet}


class Network(nn.Module):
    """Images to (embedding, logits); without the latter where there are no classes."""

    def __init__(self, family: str, options: dict[str, float], classifies: bool):
        super().__init__()
        self.body, length = FAMILIES[family](**options)
        self.top = nn.Linear(length, CLASSES) if classifies else None

    def forward(self, images):
        embedding = self.body(images).mean((2, 3))
        return embedding, self.top(embedding) if self.top else None


def triplet_kl(student, teacher, labels):
    """Stage 1 (Eq. 2-4) in the usual way, by a mask over all B³ triplets."""
    student, teacher = (
        torch.cdist(e, e, compute_mode="donot_use_mm_for_euclid_dist")
        for e in (F.normalize(student), F.normalize(teacher))
    )
    same = labels[:, None] == labels[None]
    pairs = torch.nonzero(same & ~torch.eye(len(labels), dtype=torch.bool))
    anchor, positive = pairs.T
    beyond = ~same[anchor] & (student[anchor] > student[anchor, positive][:, None])
    negative = student.detach()[anchor].masked_fill(~beyond, torch.inf).argmin(1)
    found = beyond.any(1)
    anchor, positive, negative = anchor[found], positive[found], negative[found]
    seen, wanted = (d[anchor, negative] - d[anchor, positive] for d in (student, teacher))
    p = torch.sigmoid(wanted / 2)
    entropy = F.binary_cross_entropy(p, p)
    return F.binary_cross_entropy_with_logits(seen, p) - entropy


def local_kl(logits, teacher, labels):
    """Stage 2's distillation term (Eq. 6) with the batch's centres."""
    classes, members = labels.unique(return_inverse=True)
    centers = F.normalize(F.one_hot(members, len(classes)).float().T @ teacher)
    wanted = F.softmax(teacher @ centers.T / 2, 1)
    return F.kl_div(F.log_softmax(logits[:, classes], 1), wanted, reduction="batchmean")


def kd(logits, teacher_logits, temperature=4.0):
    """Hinton et al., 2015."""
    wanted = F.softmax(teacher_logits / temperature, 1)
    ours = F.log_softmax(logits / temperature, 1)
    return temperature**2 * F.kl_div(ours, wanted, reduction="batchmean")


# (student's (embedding, logits), teacher's, labels) to the loss, by the names in training.py.
LOSSES = {
    "student": lambda s, t, y: F.cross_entropy(s[1], y),
    "stage 1": lambda s, t, y: 500 * triplet_kl(s[0], t[0], y),
    "stage 2": lambda s, t, y: F.cross_entropy(s[1], y) + 10 * local_kl(s[1], t[0], y),
    "KD": lambda s, t, y: 0.1 * F.cross_entropy(s[1], y) + 0.9 * kd(s[1], t[1]),
}


def main(options: dict) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(options["threads"])
    count, size = options["batch_size"], options["image_size"]
    images = torch.rand(count, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(count) // 4 % CLASSES
    student = Network(*options["student"], classifies=options["step"] != "stage 1")
    student = student.to(memory_format=torch.channels_last)
    teacher = None
    if options["teacher"]:
        teacher = Network(*options["teacher"], classifies=True).eval()
        teacher = teacher.to(memory_format=torch.channels_last)
    loss_of = LOSSES[options["step"]]
    optimizer = torch.optim.SGD(student.parameters(), 0.01, 0.9, weight_decay=5e-4, nesterov=True)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        with torch.no_grad():
            wanted = teacher(images) if teacher else None
        loss = loss_of(student(images), wanted, labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    parameters = sum(p.numel() for p in student.parameters())
    blocks.serve(step, parameters)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
