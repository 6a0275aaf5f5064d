"""The mistakes of real ports that tests plant, with the layer that must be found and the cause that must be named."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from mixer_common.config.model import ModelConfig

# Its sizes differ, so that no axis can stand for another; in SQUARE they do not, so that nothing but values can tell.
CONFIG = ModelConfig(
    image_size=(12, 20), patch_size=4, num_classes=5, hidden_dim=24, num_blocks=3, tokens_mlp_dim=7, channels_mlp_dim=33
)
SQUARE = replace(CONFIG, image_size=(16, 16), hidden_dim=16, tokens_mlp_dim=16, channels_mlp_dim=16)
CUBE = replace(CONFIG, image_size=(9, 15), patch_size=3, hidden_dim=3)  # filters of 3 x 3 x 3 x 3
DEEP = replace(CONFIG, num_blocks=12, tokens_mlp_dim=5, channels_mlp_dim=6, hidden_dim=8)


@dataclass(frozen=True)
class Fault:
    """A mistake; see ports/faulty_torch.py for what can be planted where."""

    name: str
    planted: Mapping[str, str]  # by the part of the port
    layer: str  # the first one that must be past its bound
    cause: str  # a part of the sentence that must name it
    config: ModelConfig = CONFIG
    gradients: bool = False  # it shows in gradients alone
    precisions: tuple[str, ...] = field(default=("float64", "float32"))  # in which it can show


ACROSS, ALONG = "pile.1.across", "pile.1.along"
TOKEN, CHANNEL = "blocks.1.token_mixing", "blocks.1.channel_mixing"
TOKEN_NORM, CHANNEL_NORM = "blocks.1.token_norm", "blocks.1.channel_norm"

FAULTS = (
    # ---- Before the model
    Fault("pixels from 0 to 1", {"pixels": "0 to 1"}, "stem", "pixels in [0, 1] instead of [-1, 1]"),
    Fault("pixels from 0 to 255", {"pixels": "0 to 255"}, "stem", "pixels in [0, 255] instead of [-1, 1]"),
    Fault("ImageNet's scale", {"pixels": "ImageNet"}, "stem", "pixels scaled by ImageNet's means and deviations"),
    Fault("a scale of its own", {"pixels": "own numbers"}, "stem", "red (p - 0.3) / 0.7; green (p - 0.3) / 0.7"),
    Fault("BGR", {"pixels": "BGR"}, "stem", "the colours in the order blue, green, red"),
    Fault(
        "pixels reshaped to planes",
        {"pixels": "N,H,W,C read as N,C,H,W"},
        "stem",
        "images (N, H, W, 3) reshaped to (N, 3, H, W) instead of transposed",
    ),
    Fault(
        "rows and columns of the images",
        {"pixels": "rows and columns"},
        "stem",
        "the rows and columns of the images exchanged",
        SQUARE,
    ),
    # ---- The stem
    Fault("patches and channels reshaped", {"stem": "patches and channels"}, "stem", "patches and channels exchanged"),
    Fault("columns of patches first", {"stem": "columns first"}, "stem", "the grid of patches in column-major order"),
    Fault(
        "a filter read in another layout",
        {"shred": "H,W,I,O read as O,I,H,W"},
        "stem",
        "its filter of layout H,W,I,O read as O,I,H,W",
        CUBE,
    ),
    Fault(
        "a filter reshaped to another layout",
        {"shred": "H,W,I,O read as O,I,H,W"},
        "stem",
        "its filter of layout H,W,I,O read as O,I,H,W",
    ),
    Fault("filters transposed", {"shred": "filters transposed"}, "stem", "rows and columns of its filters transposed"),
    Fault("colours last in a patch", {"shred": "colours last"}, "stem", "the pixels of a patch in the order colours"),
    Fault("a stem without bias", {"shred": "no bias"}, "stem", "no bias"),
    Fault("a stem in bfloat16", {"shred": "bfloat16"}, "stem", "rounding to bfloat16"),
    # ---- Norms
    Fault("a norm never used", {ACROSS: "norm never used"}, TOKEN_NORM, "the norm left out"),
    Fault("a norm's result unused", {ALONG: "result of the norm unused"}, f"{CHANNEL}.fc1", f"{CHANNEL_NORM} left out"),
    Fault("unbiased variance", {f"{ALONG}.gauge": "unbiased variance"}, CHANNEL_NORM, "divided by 23 instead of 24"),
    # At a deviation d it moves a value by epsilon (d - 1/2) / d², 5e-6 near 1; float32 may round by 1e-5 there.
    Fault(
        "epsilon outside the root",
        {f"{ACROSS}.gauge": "epsilon outside the root"},
        TOKEN_NORM,
        "epsilon added to the deviation instead of the variance",
        precisions=("float64",),
    ),
    Fault("another epsilon", {f"{ACROSS}.gauge": "other epsilon"}, TOKEN_NORM, "epsilon 0.001 instead of 1e-05"),
    Fault(
        "a norm over the patches", {f"{ALONG}.gauge": "over the patches"}, CHANNEL_NORM, "mean and variance over the pa"
    ),
    Fault(
        "a norm over everything", {f"{ALONG}.gauge": "over everything"}, CHANNEL_NORM, "patches and channels together"
    ),
    Fault("no mean subtracted", {f"{ALONG}.gauge": "no mean"}, CHANNEL_NORM, "no mean subtracted, as RMSNorm does"),
    Fault("a norm without bias", {f"{ALONG}.gauge": "no bias"}, CHANNEL_NORM, "no bias"),
    Fault("a norm in float16", {f"{ALONG}.gauge": "float16"}, CHANNEL_NORM, "rounding to TF32 or float16"),
    Fault(
        "norms exchanged in a block", {"pile.1": "norms exchanged"}, TOKEN_NORM, "the two norms of the block exchanged"
    ),
    Fault("post-norm", {ACROSS: "post-norm"}, TOKEN_NORM, "its residual connection instead of before (post-norm)"),
    Fault("a norm after the branch", {ALONG: "norm after the branch"}, CHANNEL_NORM, "before its residual connection"),
    # ---- Linear layers
    Fault(
        "a square weight transposed",
        {f"{ACROSS}.branch.wide": "transposed"},
        f"{TOKEN}.fc1",
        "its weight transposed",
        SQUARE,
    ),
    Fault("a weight reshaped", {f"{ALONG}.branch.wide": "reshaped"}, f"{CHANNEL}.fc1", "its weight reshaped where"),
    Fault("a linear layer without bias", {f"{ALONG}.branch.narrow": "no bias"}, f"{CHANNEL}.fc2", "no bias"),
    Fault("a bias added twice", {f"{ALONG}.branch.wide": "bias twice"}, f"{CHANNEL}.fc1", "its bias added twice"),
    Fault("a layer in bfloat16", {f"{ACROSS}.branch.wide": "bfloat16"}, f"{TOKEN}.fc1", "rounding to bfloat16"),
    Fault("a layer in float16", {f"{ALONG}.branch.wide": "float16"}, f"{CHANNEL}.fc1", "rounding to TF32 or float16"),
    Fault(
        "a layer in TF32", {f"{ALONG}.branch.wide": "TF32"}, f"{CHANNEL}.fc1", "rounding to TF32 or float16 of input"
    ),
    Fault(
        "a layer in float32",
        {f"{ALONG}.branch.wide": "float32"},
        f"{CHANNEL}.fc1",
        "rounding to float32",
        precisions=("float64",),
    ),
    Fault(
        "a product over the wrong axis",
        {f"{ACROSS}.branch": "over the channels"},
        f"{TOKEN}.fc1",
        "over the channels instead of the patches",
        SQUARE,
    ),
    Fault(
        "reshaped on the way in",
        {f"{ACROSS}.branch": "reshaped in"},
        f"{TOKEN}.fc1",
        "its input (N, S, C) reshaped to (N, C, S)",
    ),
    Fault(
        "reshaped on the way out",
        {f"{ACROSS}.branch": "reshaped out"},
        TOKEN,
        "its result (N, C, S) reshaped to (N, S, C)",
    ),
    # ---- GELU
    Fault("tanh GELU", {f"{ALONG}.branch.bend": "tanh"}, f"{CHANNEL}.gelu", "the tanh form of GELU"),
    Fault("sigmoid GELU", {f"{ALONG}.branch.bend": "sigmoid"}, f"{CHANNEL}.gelu", "the sigmoid form of GELU"),
    Fault("ReLU", {f"{ACROSS}.branch.bend": "ReLU"}, f"{TOKEN}.gelu", "ReLU instead of GELU"),
    Fault("SiLU", {f"{ACROSS}.branch.bend": "SiLU"}, f"{TOKEN}.gelu", "SiLU instead of GELU"),
    Fault("no GELU", {f"{ACROSS}.branch.bend": "none"}, f"{TOKEN}.gelu", "no GELU"),
    Fault(
        "dropout left on after GELU",
        {f"{ALONG}.branch.bend": "dropout"},
        f"{CHANNEL}.gelu",
        "dropout left on: the values dropped at a rate of about 0.25",
    ),
    # ---- Residual connections
    Fault("no residual connection", {ACROSS: "no residual"}, TOKEN, "the residual connection left out"),
    Fault(
        "the normalised input added", {ALONG: "residual of the normalised input"}, CHANNEL, "the normalised input added"
    ),
    Fault("the input added twice", {ALONG: "residual twice"}, CHANNEL, "the input added twice"),
    Fault("a branch halved", {ALONG: "branch halved"}, CHANNEL, "the branch multiplied with 0.5"),
    Fault("layer scale", {ALONG: "layer scale"}, CHANNEL, "a number for each channel, as LayerScale does"),
    Fault(
        "dropout left on in a branch",
        {ALONG: "dropout"},
        CHANNEL,
        "dropout left on: the branch dropped at a rate of about 0.1",
    ),
    Fault(
        "stochastic depth left on",
        {ACROSS: "stochastic depth"},
        TOKEN,
        "stochastic depth left on: whole images of the branch",
    ),
    # ---- The order of the layers
    Fault("mixers exchanged", {"pile.1": "mixers exchanged"}, TOKEN_NORM, "the order of the two mixers exchanged"),
    Fault("mixers side by side", {"pile.1": "side by side"}, TOKEN, "they stand side by side"),
    Fault("a block left out", {"pile.1": "left out"}, TOKEN_NORM, "block 1 left out"),
    Fault("a block computed twice", {"pile.1": "computed twice"}, CHANNEL, "block 1 computed 2 times"),
    Fault(
        "blocks in the order of text",
        {"order": "as text"},
        "blocks.2.token_norm",
        "in the order of their names as text (10 before 2)",
        DEEP,
    ),
    Fault("blocks backwards", {"order": "backwards"}, "blocks.0.token_norm", "from the last to the first"),
    Fault("two blocks exchanged", {"order": "two exchanged"}, TOKEN_NORM, "with 1 and 2 exchanged"),
    Fault(
        "one block in place of all",
        {"order": "first one always"},
        TOKEN_NORM,
        "block 0 in place of every block",
    ),
    # ---- The end
    Fault("no final norm", {"tail": "no norm"}, "norm", "the norm left out"),
    Fault(
        "the mean before the norm",
        {"tail": "mean before the norm"},
        "blocks.2.channel_mixing",
        "the mean over the patches taken before the last norm",
    ),
    Fault(
        "a mean over the wrong axis",
        {"tail": "mean over the channels"},
        "pool",
        "the mean over the channels instead of the patches",
        SQUARE,
    ),
    Fault("a maximum", {"tail": "maximum"}, "pool", "the maximum over the patches instead of the mean"),
    Fault("a sum", {"tail": "sum"}, "pool", "the sum over the patches instead of the mean"),
    Fault("the first token", {"tail": "first token"}, "pool", "the first patch instead of the mean"),
    Fault("a class token left in", {"tail": "class token"}, "blocks.2.channel_mixing", "a class token left in"),
    Fault("a softmax on the logits", {"tail": "softmax"}, "head", "a softmax put on the logits"),
    Fault("a temperature", {"tail": "temperature"}, "head", "all values multiplied with 14.29"),
    Fault(
        "classes in another order",
        {"tail": "classes in another order"},
        "head",
        "the classes in another order: 4, 3, 2, 1, 0",
    ),
    Fault("a head without bias", {"verdict": "no bias"}, "head", "no bias"),
    # ---- The way back
    Fault("a branch detached", {ALONG: "branch detached"}, CHANNEL, "detached", gradients=True),
    Fault(
        "a branch detached at its input",
        {ALONG: "branch detached at its input"},
        TOKEN,
        f"none through {CHANNEL_NORM}",
        gradients=True,
    ),
    Fault(
        "the stream detached",
        {ALONG: "stream detached"},
        TOKEN,
        f"none through the residual connection {CHANNEL}",
        gradients=True,
    ),
    Fault(
        "another derivative of GELU",
        {f"{ALONG}.branch.bend": "derivative of tanh"},
        f"{CHANNEL}.fc1",
        "the derivative of the tanh form of GELU",
        gradients=True,
    ),
    Fault(
        "a derivative without a term",
        {f"{ACROSS}.branch.bend": "derivative without density"},
        f"{TOKEN}.fc1",
        "without its second term",
        gradients=True,
    ),
    Fault(
        "a norm's statistics detached",
        {f"{ALONG}.gauge": "statistics detached"},
        TOKEN,
        "mean and variance detached",
        gradients=True,
    ),
    Fault(
        "a weight detached",
        {f"{ALONG}.branch.wide": "weight detached"},
        f"{CHANNEL}.fc1.weight",
        "no gradient of this weight",
        gradients=True,
    ),
)
