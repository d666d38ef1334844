"""Which class of transformers a model is: the one that its configuration names, or else the one that knows it."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from act.core.errors import ActError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_AUTO = ("CausalLM", "Seq2SeqLM", "MaskedLM", "ImageTextToText", "MultimodalLM", "SequenceClassification")
_ANY = tuple(f"AutoModelFor{task}" for task in (*_AUTO, "TokenClassification", "QuestionAnswering"))


def class_of(config: PretrainedConfig, *, trust_remote_code: bool = False) -> Any:
    """The class whose ``from_pretrained`` loads a model of this configuration: a model's, or an auto class.

    Code that the model brings along goes first where it may run, then the architecture that the configuration names,
    then the first task that transformers has for such a configuration.

    Raises:
        ActError: there is no such class, or it reads no text.
    """
    import transformers

    brought = getattr(config, "auto_map", None) or {}
    own = next((name for name in (*_ANY, "AutoModel") if name in brought), None)
    if own and trust_remote_code:
        return getattr(transformers, own)
    found = _named(config) or _known(config)
    if found is None and own:
        return getattr(transformers, own)  # which says that its code must be trusted
    if found is None:
        raise ActError(
            f"its configuration is a {type(config).__name__}, which belongs to no language model; give one that does"
        )
    if not hasattr(found, "forward"):
        return found
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    taken = [name for name, each in inspect.signature(found.forward).parameters.items() if each.kind in named]
    if "input_ids" not in taken and len(taken) > 1:
        raise ActError(
            f"it is a {found.__name__}, which reads {taken[1]} and no text; give a model that takes input_ids"
        )
    return found


def built(config: PretrainedConfig, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """A model of this configuration with random weights, in eval mode, on torch's default device.

    Raises:
        ActError: as :func:`class_of`. The code of a model may raise anything.
    """
    kind = class_of(config, trust_remote_code=trust_remote_code)
    is_auto = hasattr(kind, "from_config")
    made = kind.from_config(config, trust_remote_code=trust_remote_code) if is_auto else kind._from_config(config)
    model: PreTrainedModel = made.eval()
    return model


def _named(config: PretrainedConfig) -> type[PreTrainedModel] | None:
    """The class that the configuration names, if transformers has it for configurations of this kind."""
    import transformers

    for name in getattr(config, "architectures", None) or ():
        kind = getattr(transformers, str(name), None)
        if inspect.isclass(kind) and issubclass(kind, transformers.PreTrainedModel):
            expected: Any = kind.config_class
            if expected is not None and isinstance(config, expected):
                return kind
    return None


def _known(config: Any) -> Any:
    """The class, or the auto class, of the first task that knows the configuration: encoders decode, too, if asked."""
    import transformers

    first = "AutoModelForMaskedLM"
    if getattr(config, "is_encoder_decoder", False):
        first = "AutoModelForSeq2SeqLM"
    elif getattr(config, "is_decoder", False):
        first = "AutoModelForCausalLM"
    for name in (first, *_ANY, "AutoModel"):
        mapping = getattr(getattr(transformers, name, None), "_model_mapping", {})
        decodes = name == "AutoModelForCausalLM" and first == "AutoModelForSeq2SeqLM"  # only half of such a model
        if type(config) in mapping and not decodes:
            kind = mapping[type(config)]
            whole = not isinstance(kind, tuple) and isinstance(config, kind.config_class or object)
            return kind if whole else getattr(transformers, name)  # which knows what part of the configuration is for
    return None
