"""NormalFloat4 for altcore: sixteen quantiles of a normal distribution, scaled into [-1, 1].

The values are those of Appendix E of Dettmers et al., "QLoRA: Efficient Finetuning of Quantized
LLMs" (arXiv:2305.14314). There they are used with one scale for each block of 64 weights; here
the recipe decides on the scale, one a tensor where it says nothing.
"""

from altcore import table_format

__version__ = "1.0.0"

NF4 = table_format(
    "NF4",
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
)
