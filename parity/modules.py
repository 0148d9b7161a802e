"""Short torch modules of our own with torchvision's key names, for what timm lacks or names otherwise."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional


class SmallBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: a projection, or option A of He et al. 2015, section 4.2."""

    def __init__(self, inputs: int, outputs: int, projection: bool) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.padding = outputs // 4 if stride == 2 and not projection else 0
        if stride == 2 and projection:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outputs))
        else:
            self.downsample = nn.Sequential()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns (batch, outputs, height, width), halved where the channels grow."""
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.padding:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        return functional.relu(self.downsample(x) + y)


class SmallResNet(nn.Module):
    """A ResNet of three stages behind a 3x3 stem."""

    def __init__(
        self, blocks: int, projection: bool = False, num_classes: int = 10, width: int = 16, channels: int = 3
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)

        def stage(inputs: int, outputs: int) -> nn.Module:
            widths = [inputs, *[outputs] * blocks]
            return nn.Sequential(*(SmallBlock(*widths[i : i + 2], projection) for i in range(blocks)))

        self.layer1 = stage(width, width)
        self.layer2 = stage(width, 2 * width)
        self.layer3 = stage(2 * width, 4 * width)
        self.fc = nn.Linear(4 * width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns logits."""
        x = functional.relu(self.bn1(self.conv1(x)))
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


class Fire(nn.Module):
    """A 1x1 convolution, then a 1x1 and a 3x3 one side by side."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, width, 1)
        self.expand1x1 = nn.Conv2d(width, 4 * width, 1)
        self.expand3x3 = nn.Conv2d(width, 4 * width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns (batch, 8 * width, height, width)."""
        x = functional.relu(self.squeeze(x))
        return functional.relu(torch.cat([self.expand1x1(x), self.expand3x3(x)], 1))


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1; `widths` are those of the Fire modules, `None` is a pooling."""

    WIDTHS = (None, 16, 16, None, 32, 32, None, 48, 48, 64, 64)

    def __init__(
        self, widths: Sequence[int | None] = WIDTHS, num_classes: int = 1000, stem_width: int = 64
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, stem_width, 3, 2), nn.ReLU()]
        inputs = stem_width
        for width in widths:
            if width is None:
                layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
            else:
                layers.append(Fire(inputs, width))
                inputs = 8 * width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Conv2d(inputs, num_classes, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns logits, none below 0."""
        return self.classifier(self.features(x)).flatten(1)


class EncoderBlock(nn.Module):
    """Self-attention and an MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=1e-6)
        self.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(0), nn.Linear(4 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns tokens (batch, tokens, width)."""
        y = self.ln_1(x)
        x = x + self.self_attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class VisionTransformer(nn.Module):
    """A Vision Transformer."""

    def __init__(
        self,
        image_size: int,
        width: int,
        depth: int,
        heads: int,
        patch_size: int = 16,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.conv_proj = nn.Conv2d(3, width, patch_size, patch_size)
        self.encoder = nn.Module()
        tokens = 1 + (image_size // patch_size) ** 2
        self.encoder.pos_embedding = nn.Parameter(torch.zeros(1, tokens, width))
        self.encoder.layers = nn.Module()
        for block in range(depth):
            self.encoder.layers.add_module(f"encoder_layer_{block}", EncoderBlock(width, heads))
        self.encoder.ln = nn.LayerNorm(width, eps=1e-6)
        self.heads = nn.Module()
        self.heads.head = nn.Linear(width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns logits."""
        x = self.conv_proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1) + self.encoder.pos_embedding
        for block in self.encoder.layers.children():
            x = block(x)
        return self.heads.head(self.encoder.ln(x)[:, 0])


def conv_norm(inputs: int, outputs: int, side: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Returns a convolution that keeps the side (but for the stride) and its norm."""
    conv = nn.Conv2d(inputs, outputs, side, stride, side // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class SqueezeExcitation(nn.Module):
    """Channels scaled by what their means say."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the scaled input."""
        return x * torch.sigmoid(self.fc2(functional.silu(self.fc1(x.mean((2, 3), keepdim=True)))))


class MBConv(nn.Module):
    """An inverted bottleneck."""

    def __init__(self, inputs: int, outputs: int, expansion: int, side: int, stride: int) -> None:
        super().__init__()
        inner = inputs * expansion
        parts: list[nn.Module] = []
        if expansion > 1:
            parts.append(nn.Sequential(*conv_norm(inputs, inner, 1), nn.SiLU()))
        parts.append(nn.Sequential(*conv_norm(inner, inner, side, stride, inner), nn.SiLU()))
        parts.append(SqueezeExcitation(inner, max(1, inputs // 4)))
        parts.append(nn.Sequential(*conv_norm(inner, outputs, 1)))
        self.block = nn.Sequential(*parts)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns (batch, outputs, height / stride, width / stride)."""
        return x + self.block(x) if self.residual else self.block(x)


class EfficientNet(nn.Module):
    """An EfficientNet; its stages are (expansion, side, stride, outputs, blocks)."""

    B0 = (
        (1, 3, 1, 16, 1),
        (6, 3, 2, 24, 2),
        (6, 5, 2, 40, 2),
        (6, 3, 2, 80, 3),
        (6, 5, 1, 112, 3),
        (6, 5, 2, 192, 4),
        (6, 3, 1, 320, 1),
    )

    def __init__(
        self,
        stages: Sequence[Sequence[int]] = B0,
        num_classes: int = 1000,
        stem_width: int = 32,
        last_width: int = 1280,
    ) -> None:
        super().__init__()
        layers = [nn.Sequential(*conv_norm(3, stem_width, 3, 2), nn.SiLU())]
        inputs = stem_width
        for expansion, side, stride, outputs, blocks in stages:
            stage = [MBConv(inputs, outputs, expansion, side, stride)]
            stage += [MBConv(outputs, outputs, expansion, side, 1) for _ in range(blocks - 1)]
            layers.append(nn.Sequential(*stage))
            inputs = outputs
        layers.append(nn.Sequential(*conv_norm(inputs, last_width, 1), nn.SiLU()))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(last_width, num_classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns logits."""
        return self.classifier(self.features(x).mean((2, 3)))
