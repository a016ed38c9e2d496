"""Proximal policy optimisation with a memory."""

import warnings
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule, explained_variance
from stable_baselines3.common.vec_env import VecEnv
from torch.nn import functional as F

from sb3_shm.memory.base import State, map_state
from sb3_shm.memory.checks import check_flag, check_in_range
from sb3_shm.shm_ppo.lstm_policies import LSTM_POLICIES, as_shm_policy
from sb3_shm.shm_ppo.policies import CnnSHMPolicy, MlpSHMPolicy, MultiInputSHMPolicy, RecurrentSHMPolicy
from sb3_shm.shm_ppo.rollout import MemoryRolloutBuffer, check_lengths
from sb3_shm.training.arguments import (
    check_each,
    check_policy_class,
    check_running,
    find_policy,
    refuse_unavailable,
)
from sb3_shm.training.gymnasium_vectors import adapt_vector_env
from sb3_shm.training.heap import keep_freed_memory
from sb3_shm.training.masks import ReadsMasks
from sb3_shm.training.old_models import MEMORY_FORMAT
from sb3_shm.training.resets import WatchesResets, cut_off
from sb3_shm.training.saving import SavedWhole
from sb3_shm.training.spaces import check_action_space, check_env, check_has_env, check_observation_space
from sb3_shm.training.steps import check_losses, check_step, check_terminal_observations, naming_dead_workers
from sb3_shm.training.transfer import Guard, clip_gradient, to_device

SelfSHMPPO = TypeVar("SelfSHMPPO", bound="SHMPPO")


class SHMPPO(SavedWhole, WatchesResets, ReadsMasks, OnPolicyAlgorithm):
    """
    Proximal policy optimisation (Schulman et al., arXiv 1707.06347) for policies with a memory, by default the Stable Hadamard
    Memory (Le et al., ICLR 2025, arXiv 2410.10132).

    It trains on whole sequences: each environment's ``n_steps`` steps are cut into pieces of ``seq_len``, a minibatch holds
    ``batch_size // seq_len`` of them, nothing is padded, and what the memory drew at random while it explored is replayed, so
    that the ratio of new and old policy is exactly 1 before the first gradient step. Environments that have
    ``action_masks()``, as sb3-contrib's MaskablePPO reads it, are asked at each step which actions are legal.

    :param policy: "MlpSHMPolicy", "CnnSHMPolicy", "MultiInputSHMPolicy", which "MlpPolicy" and so on mean, too, or a subclass
        of RecurrentSHMPolicy; or one of RecurrentPPO's, "MlpLstmPolicy" and so on, with its arguments in ``policy_kwargs``
    :param env: environment, or the id of a registered one
    :param learning_rate: learning rate, or a function of the remaining progress (from 1 to 0)
    :param n_steps: steps per environment and rollout; None for 128, or with less than four environments for as many as
        make four sequences of 128 steps
    :param batch_size: steps per minibatch, a multiple of ``seq_len``; None for an equal part of the rollout, a quarter if
        possible
    :param n_epochs: passes over the rollout
    :param gamma: discount factor, in [0, 1]
    :param gae_lambda: factor of generalised advantage estimation, in [0, 1]
    :param clip_range: clipping of the ratio, a number or a schedule
    :param clip_range_vf: clipping of the change of values, a number or a schedule, None for none
    :param normalize_advantage: normalise advantages in each minibatch
    :param normalize_values: learn values divided by a running standard deviation of the returns, so that large returns do not
        drown the policy's gradient in a shared memory; the policy still gives values in units of the rewards
    :param ent_coef: weight of the entropy bonus
    :param vf_coef: weight of the value loss; of normalised values unless ``normalize_values`` is False
    :param max_grad_norm: bound of the gradient's norm, None for none
    :param use_sde: explore by noise that depends on the state (gSDE, Raffin et al., arXiv 2005.05719), for Box actions
    :param sde_sample_freq: with ``use_sde``, steps after which the noise's matrix is drawn anew; -1 for once per rollout
    :param seq_len: steps through which gradients flow back, a divisor of ``n_steps``; None for ``n_steps``, which with less
        than four environments is cut in up to four equal parts, as many as it takes for four sequences, and with a
        ``batch_size`` that is no multiple of these for the greatest length that divides both
    :param target_kl: stop the epochs when the approximate KL divergence exceeds 1.5 times this; None for never
    :param kl_coef: weight of a penalty on KL(old policy || new policy), 0 for none (RLlib's ``kl_coeff``). The divergence is
        estimated without bias by ratio - 1 - log ratio.
    :param kl_target: adapt ``kl_coef`` after each rollout: times 1.5 if the last epoch's mean divergence was above twice
        this, times 0.5 if below half of it (RLlib's rule); None to leave ``kl_coef`` as it is
    :param vf_loss_clip: cap on each step's squared value error (RLlib's ``vf_clip_param``), None for none
    :param stats_window_size: episodes over which the logged statistics are averaged
    :param tensorboard_log: folder of the TensorBoard logs, None for none
    :param policy_kwargs: arguments of the policy, see :class:`~sb3_shm.shm_ppo.policies.RecurrentSHMPolicy`
    :param verbose: 0 for silence, 1 for information, 2 for debugging
    :param seed: seed of all pseudo random generators
    :param device: "auto", "cpu", "cuda", ...
    :param _init_setup_model: build the networks at once
    :param unavailable: arguments of SB3's PPO for features that do not exist here (other buffers), legal only with the
        values that switch these off
    :raises ValueError: an argument out of range, or a space or a combination of lengths that cannot work
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpSHMPolicy": MlpSHMPolicy,
        "CnnSHMPolicy": CnnSHMPolicy,
        "MultiInputSHMPolicy": MultiInputSHMPolicy,
        "MlpPolicy": MlpSHMPolicy,
        "CnnPolicy": CnnSHMPolicy,
        "MultiInputPolicy": MultiInputSHMPolicy,
    }
    marks: ClassVar[tuple[str, ...]] = ("seq_len", "n_epochs")
    old_arguments: ClassVar[dict[str, Any]] = dict(normalize_values=False)
    policy: RecurrentSHMPolicy
    rollout_buffer: MemoryRolloutBuffer

    def __init__(
        self,
        policy: str | type[RecurrentSHMPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int | None = None,
        batch_size: int | None = None,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.98,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool = True,
        normalize_values: bool = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float | None = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        seq_len: int | None = None,
        target_kl: float | None = None,
        kl_coef: float = 0.0,
        kl_target: float | None = None,
        vf_loss_clip: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        **unavailable: Any,
    ) -> None:
        refuse_unavailable(SHMPPO, unavailable)
        if env is None and _init_setup_model:
            raise ValueError("env must be an environment or the id of one, got None (only load() needs none)")
        given = locals()
        check_running(given)
        if isinstance(policy, str) and policy in LSTM_POLICIES:
            policy, policy_kwargs = as_shm_policy(policy, policy_kwargs)
        check_flag("normalize_advantage", normalize_advantage)
        check_flag("normalize_values", normalize_values)
        check_each(given, "n_epochs", low=1, integer=True)
        check_each(given, "n_steps", "seq_len", "batch_size", optional=True, low=1, integer=True)
        check_each(given, "ent_coef")
        check_each(given, "gamma", "gae_lambda", low=0, high=1)
        check_each(given, "vf_coef", "kl_coef", low=0)
        check_each(given, "clip_range", schedule=True, above=0)
        check_each(given, "clip_range_vf", optional=True, schedule=True, above=0)
        check_each(given, "max_grad_norm", "target_kl", "kl_target", "vf_loss_clip", optional=True, above=0)
        # numpy's integers are legal, but overflow
        n_steps, seq_len, batch_size = (None if x is None else int(x) for x in (n_steps, seq_len, batch_size))

        super().__init__(
            policy,
            env,
            learning_rate=learning_rate if callable(learning_rate) else float(learning_rate),
            n_steps=n_steps,  # type: ignore[arg-type]  # see below
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,  # type: ignore[arg-type]
            use_sde=use_sde,
            sde_sample_freq=int(sde_sample_freq),
            stats_window_size=int(stats_window_size),
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=None if seed is None else int(seed),
            device=device,
            _init_setup_model=False,
        )
        if n_steps is None and self.env is not None:
            self.n_steps = 128 * -(-4 // min(self.n_envs, 4))
        self.batch_size = batch_size
        self.n_epochs = int(n_epochs)
        self.clip_range = clip_range if callable(clip_range) else float(clip_range)
        self.clip_range_vf = clip_range_vf if clip_range_vf is None or callable(clip_range_vf) else float(clip_range_vf)
        self.normalize_advantage = normalize_advantage
        self.normalize_values = normalize_values
        self.seq_len = seq_len
        self.target_kl = target_kl
        self.kl_coef = kl_coef
        self.kl_target = kl_target
        self.vf_loss_clip = vf_loss_clip
        self.memory_format = MEMORY_FORMAT
        self._last_state: State = ()

        if self.env is not None:
            _, resolved = self._lengths()
            if batch_size is not None and resolved < batch_size:
                warnings.warn(
                    f"batch_size = {batch_size} is more than a rollout has, n_steps * n_envs = {resolved}: each epoch is one "
                    "minibatch",
                    stacklevel=2,
                )
            if self.n_steps * self.n_envs % resolved:
                warnings.warn(
                    f"Each epoch ends with a smaller minibatch: batch_size = {resolved} does not divide "
                    f"n_steps * n_envs = {self.n_steps * self.n_envs}",
                    stacklevel=2,
                )
        if _init_setup_model:
            self._setup_model()

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        return find_policy(policy_name, self.policy_aliases, RecurrentSHMPolicy)

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        check_env(env := adapt_vector_env(env), check_action_space)
        return OnPolicyAlgorithm._wrap_env(env, verbose, monitor_wrapper)

    def _lengths(self) -> tuple[int, int]:
        """``seq_len`` and ``batch_size`` for the current number of environments, defaults resolved, or a ValueError."""
        return check_lengths(self.n_steps, self.n_envs, self.seq_len, self.batch_size, self.normalize_advantage)

    def _setup_model(self) -> None:
        check_observation_space(self.observation_space, self.env)
        check_action_space(self.action_space)
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        check_policy_class(self, RecurrentSHMPolicy, MultiInputSHMPolicy)
        if self.kl_target is not None and self.kl_coef == 0:
            raise ValueError("kl_target adapts kl_coef, so kl_coef must be above 0 (RLlib starts at 0.2), got 0")
        policy = self.policy_class(
            self.observation_space, self.action_space, self.lr_schedule, use_sde=self.use_sde, **self.policy_kwargs
        )
        self.policy = policy.to(self.device)  # type: ignore[assignment]
        self._last_state = self.policy.initial_state(self.n_envs)
        if self._last_episode_starts is not None:  # loaded in the middle of an episode: the memory begins anew there
            self._last_episode_starts = np.ones(self.n_envs, dtype=bool)
        self.rollout_buffer = MemoryRolloutBuffer(
            self.n_steps,
            self.observation_space,
            self.action_space,
            device=self.device,
            gae_lambda=self.gae_lambda,
            gamma=self.gamma,
            n_envs=self.n_envs,
            seq_len=self._lengths()[0],
            context_size=self.policy.context_size,
        )
        self.clip_range = FloatSchedule(self.clip_range)
        if self.clip_range_vf is not None:
            self.clip_range_vf = FloatSchedule(self.clip_range_vf)

    def collect_rollouts(  # type: ignore[override]
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: MemoryRolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """
        Act for ``n_rollout_steps`` steps in each environment and fill the buffer.

        :param env: training environments
        :param callback: called at each step, and at the beginning and end of the rollout
        :param rollout_buffer: buffer to fill
        :param n_rollout_steps: steps per environment
        :return: False if the callback ended the training
        :raises ValueError: an observation or reward is not finite, or an action mask leaves no action
        """
        assert self._last_obs is not None, "No previous observation was provided"
        assert self._last_episode_starts is not None
        self.policy.set_training_mode(False)
        rollout_buffer.reset()
        callback.on_rollout_start()
        watch = self._watch_resets()
        if watch.has_missed():
            self._begin_anew()
        step = self.num_timesteps // env.num_envs
        check_step(self, self._last_obs, np.zeros(env.num_envs), step)

        for i in range(n_rollout_steps):
            if self.use_sde and i % (self.sde_sample_freq if self.sde_sample_freq > 0 else n_rollout_steps) == 0:
                self.policy.reset_noise(env.num_envs)
            masks = self._ask_masks(env)
            obs, episode_starts, legal = to_device(
                self.device, self._last_obs, np.asarray(self._last_episode_starts, bool), masks
            )
            with th.no_grad():
                actions_tensor, values, log_probs, state, context = self.policy(obs, self._last_state, episode_starts, **legal)
            actions = actions_tensor.cpu().numpy()
            clipped_actions = actions
            if self.policy.squash_output:
                clipped_actions = self.policy.unscale_action(actions)
            elif isinstance(self.action_space, spaces.Box):
                # A Gaussian has no bounds, the environment has
                clipped_actions = np.clip(actions, self.action_space.low, self.action_space.high)

            new_obs, rewards, dones, infos = env.step(clipped_actions)
            watch.see()
            new_obs = watch.keep(new_obs)
            self.num_timesteps += env.num_envs
            step = self.num_timesteps // env.num_envs
            check_step(self, new_obs, rewards, step)

            callback.update_locals(locals())
            continue_training = callback.on_step()
            self._update_info_buffer(infos, dones)
            if continue_training:
                if is_broken_off := watch.has_missed():
                    dones, infos = cut_off(new_obs, dones, infos)
                rewards = self._bootstrap_timeouts(rewards, dones, infos, state)
                rollout_buffer.add(
                    self._last_obs,
                    actions,
                    rewards,
                    self._last_episode_starts,
                    values,
                    log_probs,
                    self._last_state,
                    context,
                    **masks,
                )
            # If training stops and goes on later, too: a memory must not cross the end of an episode unseen
            self._last_obs, self._last_episode_starts, self._last_state = new_obs, dones, state
            if not continue_training:
                return False
            if is_broken_off:
                self._begin_anew()

        obs, episode_starts = to_device(self.device, self._last_obs, np.asarray(dones, bool))
        with th.no_grad():
            values = self.policy.predict_values(obs, self._last_state, episode_starts)
        rollout_buffer.compute_returns_and_advantage(last_values=values, dones=dones)

        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _bootstrap_timeouts(
        self, rewards: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]], state: State
    ) -> np.ndarray:
        """
        Where an episode was cut off by time, add the discounted value of its last observation, which the memory reads after
        all steps of that very episode. One call for all environments.

        :param rewards: (n_envs,)
        :param dones: (n_envs,)
        :param infos: one per environment
        :param state: memory after the step
        :return: rewards, (n_envs,)
        """
        ended = np.flatnonzero(dones).tolist()
        cut = [i for i in ended if infos[i].get("TimeLimit.truncated") and "terminal_observation" in infos[i]]
        if not cut:
            return rewards
        last_obs = check_terminal_observations(infos, cut, self.observation_space, self.num_timesteps // self.n_envs)
        obs, rows, starts = to_device(self.device, last_obs, np.array(cut), np.zeros(len(cut), dtype=bool))
        with th.no_grad():
            values = self.policy.predict_values(obs, map_state(lambda tensor: tensor[rows], state), starts)
        rewards = rewards.astype(np.float32)  # a SubprocVecEnv gives the environments' own numbers, integers among them
        rewards[cut] += self.gamma * values.squeeze(1).cpu().numpy()
        return rewards

    def train(self) -> None:
        """
        Update the policy on the rollout that the buffer holds.

        :raises ValueError: a loss or a gradient is not finite; it was not applied
        """
        _, batch_size = self._lengths()
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        progress = self._current_progress_remaining
        clip_range: float = self.clip_range(progress)  # type: ignore[operator]
        clip_range_vf = None if self.clip_range_vf is None else self.clip_range_vf(progress)  # type: ignore[operator]

        value_std: th.Tensor | int = 1  # of a policy that learned normalised values before, too
        if self.normalize_values:
            self.policy.scale_values(th.as_tensor(self.rollout_buffer.returns))
            value_std = self.policy.value_statistics[-1]

        # What a device computes is waited for once, at the end, or at each minibatch if target_kl asks for it
        guard = Guard(self.device)
        parameters = list(self.policy.parameters())  # once, as to walk through the modules takes its time
        statistics: list[th.Tensor] = []
        continue_training = True
        for epoch in range(self.n_epochs):
            begin = len(statistics)
            for rollout_data in self.rollout_buffer.get(batch_size):
                values, log_prob, entropy = self.policy.evaluate_actions(
                    rollout_data.observations,
                    rollout_data.actions,
                    rollout_data.state,
                    rollout_data.episode_starts,
                    rollout_data.context,
                    rollout_data.action_masks,
                )
                advantages = rollout_data.advantages
                if self.normalize_advantage and advantages.numel() > 1:
                    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)

                # Clipped surrogate objective; the ratio is 1 in the first minibatch
                log_ratio = log_prob - rollout_data.old_log_prob
                ratio = th.exp(log_ratio)
                policy_loss = -th.min(advantages * ratio, advantages * ratio.clamp(1 - clip_range, 1 + clip_range)).mean()

                if clip_range_vf is not None:
                    change = (values - rollout_data.old_values).clamp(-clip_range_vf, clip_range_vf)
                    values = rollout_data.old_values + change
                squared_error = F.mse_loss(values, rollout_data.returns, reduction="none")
                if self.vf_loss_clip is not None:
                    squared_error = squared_error.clamp(max=self.vf_loss_clip)
                value_loss = squared_error.mean() / value_std**2

                # -log_prob estimates the entropy where it has no closed form
                entropy_loss = log_prob.mean() if entropy is None else -entropy.mean()
                loss = policy_loss + self.ent_coef * entropy_loss + self.vf_coef * value_loss

                # Unbiased estimate of KL(old || new), see http://joschu.net/blog/kl-approx.html
                kl_div = (ratio - 1 - log_ratio).mean()
                if self.kl_coef > 0:
                    loss = loss + self.kl_coef * kl_div
                clip_fraction = ((ratio - 1).abs() > clip_range).float().mean()
                logged = {
                    "loss": loss,
                    "entropy_loss": entropy_loss,
                    "policy_gradient_loss": policy_loss,
                    "value_loss": value_loss,
                    "approx_kl": kl_div,
                    "clip_fraction": clip_fraction,
                    "gradient_norm": th.zeros_like(loss),  # where there is no step
                }

                if self.target_kl is not None and (approx_kl := kl_div.item()) > 1.5 * self.target_kl:
                    continue_training = False
                    statistics.append(th.stack(list(logged.values())).detach())
                    if self.verbose >= 1:
                        print(f"Early stopping at step {epoch} due to reaching max kl: {approx_kl:.2f}")
                    break

                self.policy.optimizer.zero_grad()
                loss.backward()
                logged["gradient_norm"] = clip_gradient(parameters, self.max_grad_norm)
                guard.step(self.policy.optimizer, loss, logged["gradient_norm"])
                statistics.append(th.stack(list(logged.values())).detach())

            if not continue_training:
                break

        means = dict(zip(logged, th.stack(statistics, dim=1).cpu().double().numpy(), strict=True))
        check_losses("loss", means["loss"], means.pop("gradient_norm"), self.num_timesteps)
        self._n_updates += epoch + 1
        means |= {"loss": means["loss"][-1], "approx_kl": means["approx_kl"][begin:]}  # the latest ones, as in SB3
        for name, of_minibatches in means.items():
            self.logger.record(f"train/{name}", of_minibatches.mean())
        buffer = self.rollout_buffer
        self.logger.record("train/explained_variance", explained_variance(buffer.values.flatten(), buffer.returns.flatten()))
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", th.exp(self.policy.log_std).mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/clip_range", clip_range)
        if clip_range_vf is not None:
            self.logger.record("train/clip_range_vf", clip_range_vf)
        if self.kl_coef > 0:
            self.logger.record("train/kl_coef", self.kl_coef)

        if self.kl_target is not None:
            approx_kl = means["approx_kl"].mean()
            if approx_kl > 2 * self.kl_target:
                self.kl_coef *= 1.5
            elif approx_kl < 0.5 * self.kl_target:
                self.kl_coef *= 0.5

    def learn(
        self: SelfSHMPPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "SHMPPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
        use_masking: bool = True,
    ) -> SelfSHMPPO:
        """
        See :meth:`stable_baselines3.common.base_class.BaseAlgorithm.learn`.

        :param use_masking: ask the environments for ``action_masks()``, if they have it
        :raises ValueError: there is no environment, the lengths do not fit the number of environments, or an observation or
            reward is not finite
        :raises RuntimeError: the process of an environment ended
        """
        check_has_env(self.env)
        self._lengths()
        check_in_range("total_timesteps", total_timesteps, low=0)
        check_each(dict(log_interval=log_interval), "log_interval", optional=True, low=1, integer=True)
        check_flag("use_masking", use_masking)
        self._use_masking = use_masking
        keep_freed_memory()
        with naming_dead_workers(self.env):
            return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
