"""A small classifier of MNIST digits: features for Fréchet distances of digits.

Its weights are in the package; `tools/train_classifier.py` made them.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from ..files import check_tensors, read_tensors

WEIGHTS_PATH = Path(__file__).with_name("mnist_classifier.safetensors")
IMAGE_SHAPE = (1, 28, 28)


class MnistClassifier(nn.Module):
    """Four convolutions and one hidden layer, each with ReLU; then a linear layer.

    The hidden layer, (B, 128), is what Fréchet distances compare; it is scaled to a mean variance
    of 1 on training images. 192,970 parameters.
    """

    def __init__(self) -> None:
        super().__init__()
        convs = [
            nn.Conv2d(1, 16, 5, stride=2, padding=2),  # 14 x 14
            nn.Conv2d(16, 32, 3, padding=1),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),  # 7 x 7
            nn.Conv2d(64, 64, 3, stride=2, padding=1),  # 4 x 4
        ]
        self.convs = nn.ModuleList(convs)
        self.hidden = nn.Linear(64 * 4 * 4, 128)
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, 1, 28, 28) in [-1, 1] -> features (B, 128) and class logits (B, 10)."""
        for conv in self.convs:
            x = conv(x).relu()
        x = nn.functional.dropout(x.flatten(1), 0.25, self.training)
        features = self.hidden(x).relu()
        return features, self.head(nn.functional.dropout(features, 0.5, self.training))


def load_classifier(path: Path = WEIGHTS_PATH) -> MnistClassifier:
    """A classifier, by default the package's; its weights are float16, it computes in float32.

    Raises FileNotFoundError or ValueError, naming the file.
    """
    tensors, _ = read_tensors(path)
    model = MnistClassifier()
    check_tensors(model.state_dict(), tensors, str(path))
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False)
