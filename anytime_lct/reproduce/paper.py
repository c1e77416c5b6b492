"""The figures of the paper (Lee, Hsieh and Lee, IEEE TNNLS 2021): percent, BPC, MiB, millions of parameters.

Each table is {row: {column: figure}}. LCT_n3 means three local critics, N = 4 layer groups. Rows of the preliminary
version (IJCNN 2019), which has another network, are named so.
"""

from __future__ import annotations

Table = dict[str, dict[str, float]]
METHODS_OF_TABLE_1 = ("BP", "DNI_n1", "DNI_n2", "DNI_n3", "LCT_n1", "LCT_n2", "LCT_n3")
EXITS = ("Sub_1", "Sub_2", "Sub_3", "Main")


def _rows(columns: tuple[str, ...], rows: dict[str, str]) -> Table:
    """Parse rows of figures; `-` where the paper has none."""
    return {
        name: {column: float(cell) for column, cell in zip(columns, cells.split(), strict=True) if cell != "-"}
        for name, cells in rows.items()
    }


TABLE_1 = _rows(
    METHODS_OF_TABLE_1,
    {
        "ResNet-50, CIFAR-10": "93.79 80.07 74.59 71.24 91.41 92.64 93.32",
        "ResNet-50, CIFAR-100": "76.16 49.44 43.39 43.31 73.65 71.37 70.90",
        "ResNet-50, ImageNet": "72.09 - - - 67.80 67.67 65.81",
        "ResNet-101, CIFAR-10": "93.77 75.70 66.53 65.46 93.25 93.10 93.34",
        "ResNet-101, CIFAR-100": "76.76 43.94 35.37 33.62 71.82 72.14 72.10",
        "ResNet-101, ImageNet": "73.38 - - - 72.11 68.20 67.05",
    },
)
TABLE_2 = _rows(
    ("BP", "LCT_n1", "LCT_n2", "LCT_n3"),
    {
        "ResNet-182, CIFAR-10": "94.80 92.89 94.10 93.00",
        "ResNet-182, CIFAR-100": "77.46 73.29 72.50 72.74",
        "ResNet-182, ImageNet": "75.42 74.13 70.62 66.46",
    },
)
TABLE_3 = _rows(
    ("BP", "ADMM", "DNI_n1", "LCT_n1"),
    {"MLP, MNIST": "98.05 82.53 95.99 98.09", "MLP, CIFAR-10": "61.22 19.29 35.75 61.28"},
)
TABLE_4 = _rows(
    ("Joint losses", "BP"),
    {
        "ResNet-50, CIFAR-10": "94.80 93.79",
        "ResNet-50, CIFAR-100": "76.39 76.16",
        "ResNet-50, ImageNet": "71.86 72.09",
        "ResNet-101, CIFAR-10": "94.52 93.77",
        "ResNet-101, CIFAR-100": "75.37 76.76",
        "ResNet-101, ImageNet": "72.40 73.38",
    },
)
TABLE_5 = _rows(
    ("2 layers", "3 layers", "4 layers"),
    {
        "BP, PTB": "1.275 1.288 1.275",
        "LCT, PTB": "1.276 1.265 1.269",
        "BP, enwik8": "1.476 1.509 1.618",
        "LCT, enwik8": "1.469 1.492 1.541",
    },
)
TABLE_6 = _rows(
    ("GPU 1", "GPU 2", "GPU 3", "GPU 4"),
    {
        "BP, ResNet-50, ImageNet": "8807 - - -",
        "LCT_n3, ResNet-50, ImageNet": "3207 3077 7141 7171",
        "BP, ResNet-101, ImageNet": "8789 - - -",
        "LCT_n3, ResNet-101, ImageNet": "4663 7141 5863 5127",
        "BP, LSTM, PTB": "8695 - - -",
        "LCT_n3, LSTM, PTB": "4573 2441 2441 4489",
    },
)
TABLE_7 = _rows(
    EXITS,
    {
        "LCT_n3, ResNet-50, CIFAR-10": "86.78 91.40 93.24 93.32",
        "LCT_n3, ResNet-50, CIFAR-100": "60.03 66.71 69.29 70.90",
        "LCT_n3, ResNet-50, ImageNet": "36.59 49.98 60.73 65.81",
        "LCT_n3, ResNet-101, CIFAR-10": "91.68 93.35 93.33 93.34",
        "LCT_n3, ResNet-101, CIFAR-100": "67.22 71.17 71.59 72.10",
        "LCT_n3, ResNet-101, ImageNet": "49.44 62.68 63.69 67.05",
        "LCT_n3, preliminary version, CIFAR-10": "85.24 90.53 92.29 -",
        "alone by BP, preliminary version, CIFAR-10": "74.46 88.03 92.05 -",
    },
)
TABLE_8 = _rows(  # parameters; the FLOP columns are twice these, which is not the cost of a convolution
    EXITS,
    {
        "ResNet-50, CIFAR-10": "1.82 2.35 9.79 23.82",
        "ResNet-50, CIFAR-100": "13.62 5.30 10.53 26.77",
        "ResNet-50, ImageNet": "0.47 1.84 9.23 25.55",
        "ResNet-101, CIFAR-10": "2.35 12.03 22.01 42.68",
        "ResNet-101, CIFAR-100": "10.61 12.76 22.75 45.62",
        "ResNet-101, ImageNet": "1.84 12.58 23.68 46.64",
    },
)
TABLE_9 = _rows(EXITS, {"LCT_n3, PTB": "1.329 1.281 1.272 1.269", "LCT_n3, enwik8": "1.691 1.585 1.551 1.541"})
TABLE_10 = _rows(EXITS, {"4-layer LSTM, 50 symbols": "1.79 4.67 7.55 10.43"})
TIME_SAVED = {  # percent of backprop's training time, Section V-C; PTB by the LSTM of four layers
    "ResNet-50, CIFAR-10": {"LCT_n1": 27.8, "LCT_n3": 33.6},
    "ResNet-101, CIFAR-10": {"LCT_n1": 31.9, "LCT_n3": 40.9},
    "ResNet-50, CIFAR-100": {"LCT_n1": 32.0, "LCT_n3": 34.2},
    "ResNet-101, CIFAR-100": {"LCT_n1": 32.4, "LCT_n3": 43.9},
    "PTB": {"LCT_n1": 16.7, "LCT_n3": 35.8},
}
