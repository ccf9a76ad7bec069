"""Rotary embeddings in a config.json: as transformers 4 writes them (`rope_theta`, `rope_scaling`, and names
of single architectures) and as transformers 5 does (`rope_parameters`, nested by kind of layer in Gemma 3).
"""

from __future__ import annotations

from typing import Any

from rljax.models.transformer import Rotary

Raw = dict[str, Any]


def need(raw: Raw, key: str) -> Any:
    """The value of a key that must be there. Raises: ValueError naming it."""
    if raw.get(key) is None:
        raise ValueError(f"{key} is missing")
    return raw[key]


def read(raw: Raw, base: float, fraction: float = 1.0, local: bool = False) -> Rotary:
    """The rotary embedding of `raw`; `base` and `fraction` where it names none.

    `local`: of Gemma 3's layers with a window.

    Raises: ValueError for a kind of scaling that we do not compute.
    """
    parameters = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if raw.get("rope_parameters") and raw.get("rope_scaling"):
        agree(raw["rope_parameters"], raw["rope_scaling"])
    kind = "sliding_attention" if local else "full_attention"
    if "rope_parameters" in raw and isinstance(parameters.get(kind), dict):
        parameters = parameters[kind]
    elif local:  # version 4 has one name for it, and no scaling
        parameters = {"rope_theta": raw.get("rope_local_base_freq", base)}
    outer = raw.get("rope_theta", raw.get("rotary_emb_base", base))
    outer_fraction = raw.get("partial_rotary_factor", raw.get("rotary_pct", fraction))
    common: dict[str, Any] = {
        "base": float(parameters.get("rope_theta", outer)),
        "fraction": float(parameters.get("partial_rotary_factor", outer_fraction)),
    }
    scaling = parameters.get("rope_type", parameters.get("type", "default"))
    if scaling == "default":
        return Rotary(**common)
    if scaling == "linear":
        return Rotary(**common, scaling="linear", factor=float(need(parameters, "factor")))
    if scaling == "llama3":
        positions = parameters.get("original_max_position_embeddings", raw.get("max_position_embeddings"))
        return Rotary(
            **common,
            scaling="llama3",
            factor=float(need(parameters, "factor")),
            low_frequency_factor=float(need(parameters, "low_freq_factor")),
            high_frequency_factor=float(need(parameters, "high_freq_factor")),
            original_positions=int(positions or Rotary().original_positions),
        )
    raise ValueError(f"rope_type = {scaling!r}: must be one of default, linear, llama3")


def agree(parameters: Raw, scaling: Raw) -> None:
    """Raises: ValueError where `rope_scaling` says something else than the `rope_parameters` beside it."""
    kinds = [part for part in parameters.values() if isinstance(part, dict)] or [parameters]
    read_as = lambda part: (
        {"rope_type": part.get("rope_type", part.get("type", "default"))}
        | {key: value for key, value in part.items() if key not in ("type", "rope_theta")}
    )
    wanted = read_as(scaling)
    if not any(all(read_as(part).get(key) == value for key, value in wanted.items()) for part in kinds):
        raise ValueError(
            f"rope_scaling = {scaling} beside rope_parameters = {parameters}: two rotary scalings, of which "
            "one must go"
        )


def write(rotary: Rotary) -> Raw:
    """`rope_theta` and `rope_scaling`, which both versions read."""
    raw: Raw = {"rope_theta": rotary.base}
    if rotary.scaling == "linear":
        raw["rope_scaling"] = {"rope_type": "linear", "factor": rotary.factor}
    if rotary.scaling == "llama3":
        raw["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": rotary.factor,
            "low_freq_factor": rotary.low_frequency_factor,
            "high_freq_factor": rotary.high_frequency_factor,
            "original_max_position_embeddings": rotary.original_positions,
        }
    return raw
