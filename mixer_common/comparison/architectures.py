"""What the shapes of two models tell of the mistake in one of them."""

from mixer_common.comparison.recording import Recording
from mixer_common.config.model import ModelConfig, describe_differences


def describe_architectures(name: str, a: ModelConfig, b: ModelConfig) -> str:
    """Sentences on two configs that differ; name: the first activation of another shape."""
    if name == "head":
        return (
            f"A tells {a.num_classes} classes apart, B {b.num_classes}: one head was replaced, "
            "or counts a class, such as a background, that the other does not."
        )
    sentences = [f"The architectures differ: {describe_differences(a, b)}."]
    if mistake := _mistake(a, b):
        sentences.append(f"{mistake}.")
    return " ".join(sentences)


def describe_shapes(name: str, a: Recording, b: Recording) -> str:
    """A sentence on an activation whose shape differs though the configs are the same."""
    shapes = [side.activations[name].shape for side in (a, b)]
    for letter, (_, *sizes), (_, *others) in (("A", *shapes), ("B", *reversed(shapes))):
        if len(sizes) == len(others) == 2:
            if sizes == [others[0] + 1, others[1]]:
                return (
                    f"{letter} has {sizes[0]} tokens in {name}, one more than its {others[0]} patches: "
                    "a class token left in."
                )
            if sizes == others[::-1]:
                return f"Patches and channels are exchanged in {name}: {tuple(sizes)} in {letter} for each image."
        if len(sizes) == 1 and sizes == others[1:]:
            return f"{letter} has no patches in {name}: the mean over the patches taken before the last norm."
        if name == "head" and len(sizes) == len(others) + 1:
            return f"{letter} gives logits for each patch: the mean over the patches is left out."
    return f"The layer {name} computes another shape: {shapes[0]} in A, {shapes[1]} in B."


def _mistake(a: ModelConfig, b: ModelConfig) -> str:
    """The mistake that makes one config of the other, without a full stop; empty where none does."""
    tokens, channels = (a.tokens_mlp_dim, b.tokens_mlp_dim), (a.channels_mlp_dim, b.channels_mlp_dim)
    patches, width = (a.num_patches, b.num_patches), (a.hidden_dim, b.hidden_dim)
    if tokens == channels[::-1] and tokens[0] != tokens[1]:
        return "The widths of the two MLPs are exchanged"
    if tokens == patches[::-1] and tokens[0] != tokens[1]:
        return "The width of token mixing was taken for the number of patches in one of them"
    for letter, own, other in (("A", 0, 1), ("B", 1, 0)):
        same = patches[0] == patches[1] and width[0] == width[1]
        if not same or tokens[0] == tokens[1] or patches[0] == width[0]:
            continue
        if tokens[own] == patches[own]:
            return f"{letter}'s token mixing is as wide as it has patches: their number was taken for its width"
        if tokens[own] * patches[other] == tokens[other] * width[own]:
            return (
                f"The expansion is on the wrong axis: {letter}'s token mixing is {tokens[own] / width[own]:g} times "
                f"as wide as the channels, the other's as many times as the patches"
            )
    if a.num_blocks in (2 * b.num_blocks, b.num_blocks / 2):
        return "One may count token mixing and channel mixing as two blocks"
    return ""
