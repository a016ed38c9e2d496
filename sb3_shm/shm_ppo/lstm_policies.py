"""The policies of sb3-contrib's RecurrentPPO, by their names and arguments, as policies of this package."""

from typing import Any

from stable_baselines3.common.torch_layers import NatureCNN

from sb3_shm.memory.checks import check_flag, check_in_range

LSTM_POLICIES = {
    "MlpLstmPolicy": "MlpSHMPolicy",
    "CnnLstmPolicy": "CnnSHMPolicy",
    "MultiInputLstmPolicy": "MultiInputSHMPolicy",
}
"""Names of RecurrentPPO's policies, and of ours that read the same observations."""
_OURS = (
    "memory",
    "memory_kwargs",
    "memory_layers",
    "critic_memory",
    "critic_memory_kwargs",
    "share_memory",
    "encoder_arch",
    "position",
)


def as_shm_policy(name: str, policy_kwargs: dict[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """
    RecurrentPPO's policy in words of this package: the same layers with the same defaults, an LSTM each for policy and value
    right behind the features extractor. (sb3-contrib, common/recurrent/policies.py.) One thing differs: with
    ``shared_lstm=True`` the values' gradient reaches the LSTM here, there it does not.

    :param name: one of ``LSTM_POLICIES``
    :param policy_kwargs: arguments of RecurrentPPO's policy, ``lstm_hidden_size``, ``n_lstm_layers``, ``shared_lstm``,
        ``enable_critic_lstm`` and ``lstm_kwargs`` among them, or None
    :return: the name of ours, and its arguments
    :raises ValueError: an argument that is illegal there, or ours, or torch's for LSTMs of other kinds
    """
    kwargs = dict(policy_kwargs or {})
    for argument in _OURS:
        if argument in kwargs:
            raise ValueError(f"{name} has no argument {argument!r}: write '{LSTM_POLICIES[name]}' to choose a memory")
    size = kwargs.pop("lstm_hidden_size", 256)
    n_layers = kwargs.pop("n_lstm_layers", 1)
    shared, of_critic = kwargs.pop("shared_lstm", False), kwargs.pop("enable_critic_lstm", True)
    check_in_range("lstm_hidden_size", size, low=1, integer=True)
    check_in_range("n_lstm_layers", n_layers, low=1, integer=True)
    check_flag("shared_lstm", shared)
    check_flag("enable_critic_lstm", of_critic)
    if shared and of_critic:
        raise ValueError("shared_lstm=True needs enable_critic_lstm=False: policy and value share one LSTM, or have one each")
    lstm_kwargs = kwargs.pop("lstm_kwargs", None)
    # What torch's LSTM does by default is legal, so that scripts that name it run
    for argument, value in (lstm_kwargs or {}).items():
        if (argument, value) not in (("bias", True), ("dropout", 0), ("bidirectional", False), ("proj_size", 0)):
            raise ValueError(f"lstm_kwargs may hold torch's defaults only, got {argument}={value!r}: leave it out")
    if kwargs.get("net_arch") is None:  # as SB3's ActorCriticPolicy does it
        extractor = kwargs.get("features_extractor_class", NatureCNN if name == "CnnLstmPolicy" else None)
        kwargs["net_arch"] = [] if extractor is NatureCNN else dict(pi=[64, 64], vf=[64, 64])
    kwargs.setdefault("ortho_init", True)
    kwargs |= dict(
        memory="lstm", memory_kwargs=dict(hidden_size=size, num_layers=n_layers), encoder_arch=[], share_memory=bool(shared)
    )
    if not shared and not of_critic:  # the value sees the present alone
        kwargs |= dict(critic_memory="mlp", critic_memory_kwargs=dict(output_size=size))
    return LSTM_POLICIES[name], kwargs
