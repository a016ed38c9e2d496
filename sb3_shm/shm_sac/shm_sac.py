"""Soft actor-critic with memories."""

import math
import pathlib
import warnings
from io import BufferedIOBase
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise, VectorizedActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, RolloutReturn, Schedule, TrainFreq
from stable_baselines3.common.utils import get_parameters_by_name, polyak_update, should_collect_more_steps
from stable_baselines3.common.vec_env import VecEnv, VecTransposeImage, unwrap_vec_normalize

from sb3_shm.files import open_for_sb3
from sb3_shm.memory.base import State
from sb3_shm.memory.checks import check_flag, check_in_range
from sb3_shm.shm_sac.checks import (
    check_action_noise,
    check_normalize_is_outermost,
    check_sac_action_space,
    parse_batch,
    parse_ent_coef,
    parse_target_entropy,
    parse_train_freq,
)
from sb3_shm.shm_sac.masks import KeepsMasks, draw_legal
from sb3_shm.shm_sac.networks import Actor, Critic
from sb3_shm.shm_sac.policies import CnnSHMPolicy, MlpSHMPolicy, MultiInputSHMPolicy, SHMSACPolicy
from sb3_shm.shm_sac.tape import MemoryReplayBuffer
from sb3_shm.shm_sac.tape_file import load_tape
from sb3_shm.shm_sac.targets import n_step_targets, reachable_entropy
from sb3_shm.training.arguments import (
    check_each,
    check_policy_class,
    check_running,
    find_policy,
    refuse_unavailable,
)
from sb3_shm.training.gymnasium_vectors import adapt_vector_env
from sb3_shm.training.heap import keep_freed_memory
from sb3_shm.training.old_models import MEMORY_FORMAT
from sb3_shm.training.pictures_first import ChannelsFirst
from sb3_shm.training.saving import SavedWhole
from sb3_shm.training.spaces import check_env, check_has_env, check_observation_space
from sb3_shm.training.steps import check_losses, check_step, naming_dead_workers, next_observations
from sb3_shm.training.transfer import Guard, clip_gradient, to_device

SelfSHMSAC = TypeVar("SelfSHMSAC", bound="SHMSAC")

_LATE = 1000
"""Steps of each environment after which it is said that no episode has ended, and so none can be learned from."""


class SHMSAC(SavedWhole, KeepsMasks, OffPolicyAlgorithm):
    """
    Soft actor-critic (Haarnoja et al., arXiv 1812.05905; for Discrete actions Christodoulou, arXiv 1910.07207) for policies
    with memories, by default the Stable Hadamard Memory (Le et al., ICLR 2025, arXiv 2410.10132). The structure is that of
    pomdp-baselines (Ni et al., ICML 2022), on which the paper's meta-RL experiments stand.

    It trains on pieces of a tape of observations (:class:`~sb3_shm.shm_sac.tape.MemoryReplayBuffer`): windows, before which
    the memory is empty, or whole episodes, in which the memory is exact. What is random in a memory is drawn afresh in the
    updates. Environments with Discrete actions that have ``action_masks()``, as sb3-contrib's MaskablePPO reads it, are asked
    at each step which are legal: only these are done, and only over them go the expectations in losses and targets.

    :param policy: "MlpSHMPolicy", "CnnSHMPolicy", "MultiInputSHMPolicy" or a subclass of SHMSACPolicy
    :param env: environment, or the id of a registered one
    :param learning_rate: learning rate of actor, critics and entropy coefficient, or a function of the remaining progress
        (from 1 to 0)
    :param buffer_size: rows of the tape, in all environments together
    :param learning_starts: steps before the first update, acted at random; the memory reads them. If the tape does not hold a
        window or a whole episode by then, the updates start as soon as it does.
    :param batch_size: number of windows, or of episodes, in a batch; "auto" for 16, with pictures 4
    :param tau: weight of the critic in the target critic at each target update, in [0, 1]
    :param gamma: discount factor, in [0, 1]
    :param train_freq: steps of each environment between updates, or e.g. ``(1, "episode")``
    :param gradient_steps: gradient steps each time, -1 for as many as steps were made in all environments. A quarter of an
        update per step is ``train_freq=4, gradient_steps=1``.
    :param action_noise: noise added to Box actions, None for none
    :param seq_len: transitions in a window; "auto" for 128, with pictures 64, or what a smaller tape holds; None for whole
        episodes. An agent acts with memories as old as its episode, which much shorter windows do not train.
    :param burn_in: first transitions of a window that count in no loss, as the memory lacks what came before the window;
        None for a quarter of ``seq_len``
    :param replay_context: give the memory that acted the rows of θ that it drew then; by default they are drawn afresh
    :param ent_coef: entropy coefficient, or "auto" to learn it, or e.g. "auto_0.1" to learn it from this value on
    :param target_update_interval: gradient steps between updates of the target critic, counted over all that the model made
    :param target_entropy: entropy in nats that the coefficient is learned for; "auto" for minus the number of action
        dimensions or, with n Discrete actions, 0.3 log(n). SAC-Discrete (arXiv 1910.07207) takes 0.98 log(n), CleanRL 0.89
        log(n): nearly uniform play, with which a task that must be played exactly, such as balancing a pole, cannot be. Where
        k of n actions are legal, log(k) / log(n) of it, see :func:`~sb3_shm.shm_sac.targets.reachable_entropy`
    :param max_grad_norm: bound of the norms of the actor's gradient and of the critics', None for none, as in SB3's SAC
    :param n_steps: rewards that are summed up before a target is bootstrapped
    :param use_sde: explore by noise that depends on the state (gSDE, Raffin et al., arXiv 2005.05719), for Box actions
    :param sde_sample_freq: with ``use_sde``, steps after which the noise's matrix is drawn anew; -1 for with each
        ``train_freq``
    :param use_sde_at_warmup: with ``use_sde``, explore by its noise in the warm-up, too
    :param stats_window_size: episodes over which the logged statistics are averaged
    :param tensorboard_log: folder of the TensorBoard logs, None for none
    :param policy_kwargs: arguments of the policy, see :class:`~sb3_shm.shm_sac.policies.SHMSACPolicy`
    :param verbose: 0 for silence, 1 for information, 2 for debugging
    :param seed: seed of all pseudo random generators
    :param device: "auto", "cpu", "cuda", ...
    :param _init_setup_model: build the networks at once
    :param unavailable: arguments of SB3's SAC for features that do not exist here (HER and other replay buffers,
        optimize_memory_usage), legal only with the values that switch these off
    :raises ValueError: an argument out of range, or a space that cannot work
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpSHMPolicy": MlpSHMPolicy,
        "CnnSHMPolicy": CnnSHMPolicy,
        "MultiInputSHMPolicy": MultiInputSHMPolicy,
        "MlpPolicy": MlpSHMPolicy,
        "CnnPolicy": CnnSHMPolicy,
        "MultiInputPolicy": MultiInputSHMPolicy,
    }
    marks: ClassVar[tuple[str, ...]] = ("seq_len", "tau")
    policy: SHMSACPolicy
    actor: Actor
    critic: Critic
    critic_target: Critic
    replay_buffer: MemoryReplayBuffer

    def __init__(
        self,
        policy: str | type[SHMSACPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int = 100,
        batch_size: int | str = "auto",
        tau: float = 0.005,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | None = None,
        seq_len: int | str | None = "auto",
        burn_in: int | None = None,
        replay_context: bool = False,
        ent_coef: str | float = "auto",
        target_update_interval: int = 1,
        target_entropy: str | float = "auto",
        max_grad_norm: float | None = None,
        n_steps: int = 1,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        use_sde_at_warmup: bool = False,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        **unavailable: Any,
    ) -> None:
        refuse_unavailable(SHMSAC, unavailable)
        if env is None and _init_setup_model:
            raise ValueError("env must be an environment or the id of one, got None (only load() needs none)")
        given = locals()
        check_running(given)
        check_flag("replay_context", replay_context)
        check_flag("use_sde_at_warmup", use_sde_at_warmup)
        check_each(given, "buffer_size", "target_update_interval", "n_steps", low=1, integer=True)
        check_each(given, "learning_starts", low=0, integer=True)
        check_each(given, "gradient_steps", low=-1, integer=True)
        check_each(given, "tau", "gamma", low=0, high=1)
        check_each(given, "max_grad_norm", optional=True, above=0)
        super().__init__(
            policy,
            env,
            learning_rate if callable(learning_rate) else float(learning_rate),
            int(buffer_size),  # numpy's integers are legal, but overflow
            int(learning_starts),
            batch_size,  # type: ignore[arg-type]  # parsed when the model is set up
            tau,
            gamma,
            train_freq,
            int(gradient_steps),
            action_noise,
            replay_buffer_class=MemoryReplayBuffer,
            replay_buffer_kwargs=None,
            policy_kwargs=policy_kwargs,
            stats_window_size=int(stats_window_size),
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            seed=None if seed is None else int(seed),
            use_sde=use_sde,
            sde_sample_freq=int(sde_sample_freq),
            use_sde_at_warmup=use_sde_at_warmup,
            sde_support=False,  # by which SB3 means that policy_kwargs hold use_sde
            support_multi_env=True,
        )
        self.n_steps = int(n_steps)
        self.seq_len = seq_len
        self.burn_in = burn_in
        self.replay_context = replay_context
        self.ent_coef = ent_coef
        self.max_grad_norm = max_grad_norm
        self.target_entropy = target_entropy
        self.target_update_interval = int(target_update_interval)
        self.log_ent_coef: th.Tensor | None = None
        self.ent_coef_optimizer: th.optim.Adam | None = None
        self.memory_format = MEMORY_FORMAT
        self._last_state: State = ()
        self._last_context: th.Tensor | None = None
        self._said_that_no_episode_ends = False
        if _init_setup_model:
            self._setup_model()

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        return find_policy(policy_name, self.policy_aliases, SHMSACPolicy)

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        check_env(env := adapt_vector_env(env), check_sac_action_space)
        wrapped = OffPolicyAlgorithm._wrap_env(env, verbose, monitor_wrapper)
        if type(wrapped) is VecTransposeImage and unwrap_vec_normalize(wrapped.venv) is not None:
            wrapped = ChannelsFirst(wrapped.venv, wrapped.skip)
        return wrapped

    def _setup_model(self) -> None:
        check_observation_space(self.observation_space, self.env)
        check_sac_action_space(self.action_space)
        check_policy_class(self, SHMSACPolicy, MultiInputSHMPolicy)
        check_action_noise(self.action_noise, self.action_space)
        self.train_freq = parse_train_freq(self.train_freq, self.n_envs)  # type: ignore[assignment]
        rows = self.buffer_size // self.n_envs
        self.batch_size, self.seq_len = parse_batch(self.batch_size, self.seq_len, rows, self.observation_space, self.n_steps)
        burn_in = (self.seq_len or 0) // 4 if self.burn_in is None else self.burn_in
        self.replay_buffer_kwargs = dict(seq_len=self.seq_len, burn_in=burn_in, verbose=self.verbose)
        # For the policy, but not to be saved; and SB3 warns of n_steps for buffers that are not its own
        policy_kwargs, n_steps = self.policy_kwargs, self.n_steps
        self.policy_kwargs, self.n_steps = policy_kwargs | dict(use_sde=self.use_sde), 1
        super()._setup_model()
        self.policy_kwargs, self.n_steps = policy_kwargs, n_steps
        self.actor, self.critic, self.critic_target = self.policy.actor, self.policy.critic, self.policy.critic_target
        self.batch_norm_stats = get_parameters_by_name(self.critic, ["running_"])
        self.batch_norm_stats_target = get_parameters_by_name(self.critic_target, ["running_"])
        self._last_state = self.policy.pi_trunk.initial_state(self.n_envs)
        if self._last_episode_starts is not None:  # loaded in the middle of an episode: the memory begins anew there
            self._last_episode_starts = np.ones(self.n_envs, dtype=bool)

        self.target_entropy = parse_target_entropy(self.target_entropy, self.action_space)
        initial, is_learned = parse_ent_coef(self.ent_coef)
        if is_learned:
            self.log_ent_coef = th.full((1,), np.log(initial), device=self.device, requires_grad=True)
            fused = self.device.type != "cpu"  # where a device must not be waited for
            self.ent_coef_optimizer = th.optim.Adam([self.log_ent_coef], lr=self.lr_schedule(1), fused=fused)
        else:
            self.ent_coef_tensor = th.full((), initial, device=self.device)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        See :meth:`stable_baselines3.common.off_policy_algorithm.OffPolicyAlgorithm._sample_action`. The memory reads the
        observations in the warm-up, too.
        """
        assert self._last_obs is not None
        assert self._last_episode_starts is not None
        if self.num_timesteps == self._num_timesteps_at_start:
            check_step(self, self._last_obs, np.zeros(n_envs), self.num_timesteps // n_envs)
        masks = self._present_masks()
        obs, starts, legal = to_device(self.device, self._last_obs, np.asarray(self._last_episode_starts, bool), masks)
        with th.no_grad():
            tensor, self._last_state, self._last_context = self.policy(obs, self._last_state, starts, **legal)
        warming_up = self.num_timesteps < learning_starts and not (self.use_sde and self.use_sde_at_warmup)
        space = self.action_space
        if not isinstance(space, spaces.Box):
            legal_of = masks.get("action_masks", [None] * n_envs)
            actions = np.array([draw_legal(space, mask) for mask in legal_of]) if warming_up else tensor.cpu().numpy()
            return actions, actions
        shape = (n_envs, *space.shape)
        if warming_up:  # as n_envs times space.sample(), which takes as long as a step of the policy
            actions = self.policy.scale_action(space.np_random.uniform(space.low, space.high, shape).astype(space.dtype))
        else:
            actions = tensor.cpu().numpy().reshape(shape)
        if action_noise is not None:
            actions = np.clip(actions + action_noise(), -1, 1)
        return self.policy.unscale_action(actions), actions

    def _store_transition(  # type: ignore[override]
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: np.ndarray | dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
        next_obs: np.ndarray | dict[str, np.ndarray],
        new_masks: dict[str, np.ndarray] | None = None,
    ) -> None:
        """
        See :meth:`stable_baselines3.common.off_policy_algorithm.OffPolicyAlgorithm._store_transition`. The tape keeps what the
        environment gave, not what VecNormalize made of it: ``next_obs``, which end episodes where ``new_obs`` begin new ones;
        what the memory drew; and ``new_masks``, those of ``new_obs``.

        :raises ValueError: an observation or reward is not finite
        """
        assert isinstance(replay_buffer, MemoryReplayBuffer)
        normalize, step = self._vec_normalize_env, self.num_timesteps // self.n_envs
        check_step(self, new_obs, reward, step)
        original_obs, original_reward = new_obs, reward
        if normalize is None:
            self._last_original_obs = self._last_obs
        else:
            original_obs, original_reward = normalize.get_original_obs(), normalize.get_original_reward()
        context = self._last_context if self.replay_context else None
        replay_buffer.add(
            self._last_original_obs,
            next_obs,
            buffer_action,
            original_reward,
            dones,
            infos,
            self._last_episode_starts,
            None if context is None else context.cpu().numpy(),
            **self._masks_of_step(new_masks, dones, infos),
        )
        self._last_obs, self._last_original_obs, self._last_masks = new_obs, original_obs, new_masks
        self._last_episode_starts = dones

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        train_freq: TrainFreq,
        replay_buffer: ReplayBuffer,
        action_noise: ActionNoise | None = None,
        learning_starts: int = 0,
        log_interval: int | None = None,
    ) -> RolloutReturn:
        """
        See :meth:`stable_baselines3.common.off_policy_algorithm.OffPolicyAlgorithm.collect_rollouts`.

        Other than there, the step at which a callback ends the training is stored: if training goes on, a memory must not miss
        a step. And a callback may reset the environments.
        """
        self.policy.set_training_mode(False)
        num_collected_steps, num_collected_episodes = 0, 0
        callback.on_rollout_start()
        watch = self._watch_resets()
        if watch.has_missed():
            self._begin_anew()
        normalize = self._vec_normalize_env
        continue_training = True
        while continue_training and should_collect_more_steps(train_freq, num_collected_steps, num_collected_episodes):
            if self.use_sde and num_collected_steps % (self.sde_sample_freq if self.sde_sample_freq > 0 else math.inf) == 0:
                self.policy.reset_noise(env.num_envs)
            actions, buffer_actions = self._sample_action(learning_starts, action_noise, env.num_envs)
            new_obs, rewards, dones, infos = env.step(actions)
            watch.see()
            new_obs = watch.keep(new_obs)
            originals = None if normalize is None else (watch.keep(normalize.old_obs), normalize.old_reward)
            self.num_timesteps += env.num_envs
            num_collected_steps += 1
            new_masks = self._ask_masks(env)
            # Here, as a callback's reset() changes VecNormalize's statistics
            next_obs = next_observations(new_obs, dones, infos, self.num_timesteps // self.n_envs, env, normalize)

            callback.update_locals(locals())
            continue_training = callback.on_step()
            is_broken_off = watch.has_missed()
            if is_broken_off and normalize is not None:  # it holds what it normalised last
                normalize.old_obs, normalize.old_reward = originals  # type: ignore[misc]
            self._update_info_buffer(infos, dones)
            self._store_transition(replay_buffer, buffer_actions, new_obs, rewards, dones, infos, next_obs, new_masks)
            if continue_training:
                self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
            for i in np.flatnonzero(dones).tolist():
                num_collected_episodes += 1
                self._episode_num += 1
                if action_noise is not None:
                    action_noise.reset(**(dict(indices=[i]) if env.num_envs > 1 else {}))
                if continue_training and log_interval is not None and self._episode_num % log_interval == 0:
                    self.dump_logs()
            if is_broken_off:  # the tape does not go on where an episode starts
                self._begin_anew()
                if action_noise is not None:
                    action_noise.reset()
        if continue_training:
            callback.on_rollout_end()
        return RolloutReturn(num_collected_steps * env.num_envs, num_collected_episodes, continue_training)

    def train(self, gradient_steps: int, batch_size: int) -> None:
        """
        Sample the tape and update critics, actor and entropy coefficient.

        :param gradient_steps: number of updates
        :param batch_size: windows or episodes in each
        :raises ValueError: a loss or a gradient is not finite; it was not applied
        """
        if not self.replay_buffer.can_sample():
            steps = (self.num_timesteps - self._num_timesteps_at_start) // self.n_envs
            if self.seq_len is None and steps >= _LATE and not self._said_that_no_episode_ends:
                self._said_that_no_episode_ends = True
                warnings.warn(
                    f"No episode has ended in {steps} steps, and nothing is learned before one does: with seq_len=None whole "
                    "episodes are learned from; set seq_len, for example to 128, or limit the episodes (TimeLimit)",
                    stacklevel=2,
                )
            return
        self.policy.set_training_mode(True)
        optimizers = [self.actor.optimizer, self.critic.optimizer]
        if self.ent_coef_optimizer is not None:
            optimizers.append(self.ent_coef_optimizer)
        self._update_learning_rate(optimizers)

        guard = Guard(self.device)
        statistics: list[th.Tensor] = []
        assert isinstance(self.target_entropy, float)
        critic_parameters, actor_parameters = list(self.critic.parameters()), list(self.actor.parameters())
        for gradient_step in range(gradient_steps):
            rows = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
            mask = rows.mask
            count = mask.sum().clamp(min=1)  # a small batch may hold no transition that counts
            # The actor on all observations: on the last of each sequence for the target alone
            critic_context = rows.context if self.actor.body is None else None
            critic_reading = self.critic.body.read(rows, critic_context)
            reading = critic_reading.detach() if self.actor.body is None else self.actor.body.read(rows, rows.context)
            if self.use_sde:
                self.actor.reset_noise()
            actions, log_prob, weight = self.actor.options(reading, rows.action_masks)

            ent_coef = self.ent_coef_tensor if self.log_ent_coef is None else self.log_ent_coef.detach().exp()
            logged, norms = {"ent_coef": ent_coef}, {}
            if self.log_ent_coef is not None and self.ent_coef_optimizer is not None:
                surplus = ((weight * log_prob).sum(-1) + reachable_entropy(self.target_entropy, rows.action_masks)).detach()
                surplus = surplus[:, :-1]
                ent_coef_loss = -(self.log_ent_coef * th.where(mask, surplus, 0)).sum() / count
                logged["ent_coef_loss"] = ent_coef_loss
                self.ent_coef_optimizer.zero_grad()
                ent_coef_loss.backward()
                norms["ent_coef"] = clip_gradient([self.log_ent_coef], None)
                guard.step(self.ent_coef_optimizer, ent_coef_loss, norms["ent_coef"])

            with th.no_grad():
                # The target critic's memory of a next observation is its memory after reading that observation
                next_reading = self.critic_target.body.read(rows).steps(1, None)
                next_q = self.critic_target(next_reading, None if actions is None else actions[:, 1:]).amin(0)
                next_value = (weight[:, 1:] * (next_q - ent_coef * log_prob[:, 1:])).sum(-1)
                target = n_step_targets(rows.rewards, rows.terminals, next_value, mask, self.gamma, self.n_steps)
            q_taken = self.critic.of_taken(critic_reading.steps(None, -1), rows.actions)
            critic_loss = 0.5 * th.where(mask, (q_taken - target).square(), 0).sum() / count
            self.critic.optimizer.zero_grad()
            critic_loss.backward()
            norms["critic"] = clip_gradient(critic_parameters, self.max_grad_norm)
            guard.step(self.critic.optimizer, critic_loss, norms["critic"])

            with th.no_grad():
                critic_reading = self.critic.body.read(rows, critic_context)
            q_pi = self.critic.of_chosen(critic_reading.steps(None, -1), None if actions is None else actions[:, :-1]).amin(0)
            actor_loss = (weight * ent_coef * log_prob)[:, :-1].sum(-1) - (weight[:, :-1] * q_pi).sum(-1)
            actor_loss = th.where(mask, actor_loss, 0).sum() / count
            self.actor.optimizer.zero_grad()
            actor_loss.backward()
            norms["actor"] = clip_gradient(actor_parameters, self.max_grad_norm)
            guard.step(self.actor.optimizer, actor_loss, norms["actor"])
            logged |= {"critic_loss": critic_loss, "actor_loss": actor_loss}
            statistics.append(th.stack([scalar.detach().reshape(()) for scalar in (*logged.values(), *norms.values())]))

            if (self._n_updates + gradient_step) % self.target_update_interval == 0:
                polyak_update(self.critic.parameters(), self.critic_target.parameters(), self.tau)
                polyak_update(self.batch_norm_stats, self.batch_norm_stats_target, 1.0)

        # What the device computed is waited for once
        names = (*logged, *(f"{whose}_norm" for whose in norms))
        values = dict(zip(names, th.stack(statistics, dim=1).cpu().double().numpy(), strict=True))
        whose_losses = {"ent_coef": "entropy coefficient", "critic": "critic", "actor": "actor"}
        for whose in norms:
            losses, norms_of = values[f"{whose}_loss"], values.pop(f"{whose}_norm")
            check_losses(f"{whose_losses[whose]}'s loss", losses, norms_of, self.num_timesteps)
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name, of_updates in values.items():
            self.logger.record(f"train/{name}", of_updates.mean())

    def learn(
        self: SelfSHMSAC,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "SHMSAC",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
        use_masking: bool = True,
    ) -> SelfSHMSAC:
        """
        See :meth:`stable_baselines3.common.base_class.BaseAlgorithm.learn`.

        :param use_masking: ask the environments for ``action_masks()``, if they have it
        :raises ValueError: there is no environment, an observation or reward is not finite, a wrapper outside of VecNormalize,
            or no replay buffer
        :raises RuntimeError: the process of an environment ended
        """
        check_has_env(self.env)
        check_normalize_is_outermost(self.env)
        check_in_range("total_timesteps", total_timesteps, low=0)
        check_each(dict(log_interval=log_interval), "log_interval", optional=True, low=1, integer=True)
        check_flag("use_masking", use_masking)
        self._use_masking = use_masking
        if getattr(self, "replay_buffer", None) is None:
            raise ValueError("replay_buffer is None: load one with load_replay_buffer(), or make the model anew")
        if isinstance(self.action_noise, VectorizedActionNoise) and self.action_noise.n_envs != self.n_envs:
            self.action_noise = self.action_noise.base_noise  # of another number of environments; SB3 makes one for each
        updates = self._n_updates
        keep_freed_memory()
        with naming_dead_workers(self.env):
            super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
        if self._n_updates == updates and self.gradient_steps and 0 < self._total_timesteps <= self.num_timesteps:
            if self.num_timesteps <= self.learning_starts:
                why = f"the updates start after learning_starts = {self.learning_starts} steps: lower it, or learn for longer"
            elif self.seq_len is None:
                why = "with seq_len=None whole episodes are learned from, and none has ended: learn for longer, or set seq_len"
            else:
                why = f"no environment made seq_len = {self.seq_len} steps: lower seq_len, or learn for longer"
            warnings.warn(f"learn({total_timesteps}) changed nothing: {why}", stacklevel=2)
        return self

    def load_replay_buffer(self, path: str | pathlib.Path | BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """
        Load a tape. The episodes that ran when it was saved do not go on.

        :param path: file that ``save_replay_buffer`` wrote
        :param truncate_last_traj: not used
        :raises ValueError: not a tape, or one of other spaces, another number of environments, or too short for the windows;
            the model then keeps its own
        """
        context_size = self.policy.pi_trunk.context_size if self.replay_context else 0
        loaded = load_tape(path, self.observation_space, self.action_space, self.n_envs, context_size, self.verbose)
        # Not those of the present buffer, which there need not be
        loaded.set_windows(self.replay_buffer_kwargs["seq_len"], self.replay_buffer_kwargs["burn_in"])
        loaded.end_episodes()
        loaded.device = self.device
        self.replay_buffer = loaded
        if self._last_episode_starts is not None:  # on the new tape an episode starts here: the memory begins anew, too
            self._last_episode_starts = np.ones(self.n_envs, dtype=bool)

    def save_replay_buffer(self, path: str | pathlib.Path | BufferedIOBase) -> None:
        """
        Save the tape. An older file stays until the new one is complete.

        :param path: file to write, by custom ``.pkl``
        :raises OSError: the file cannot be written, e.g. the disk is full
        """
        with open_for_sb3(path, "pkl") as file:
            super().save_replay_buffer(file)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "actor", "critic", "critic_target"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts = ["policy", "actor.optimizer", "critic.optimizer"]
        if self.ent_coef_optimizer is None:
            return state_dicts, ["ent_coef_tensor"]
        return [*state_dicts, "ent_coef_optimizer"], ["log_ent_coef"]
