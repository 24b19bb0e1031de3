"""What both environments offer besides Gymnasium's methods: measurements, recordings, parameters that may change."""

from typing import Any

from rt_lrhc.config import Clock, RealTimeConfig
from rt_lrhc.environment.benchmarks import Benchmarks
from rt_lrhc.environment.coverage import Coverage
from rt_lrhc.environment.engine import Schedule
from rt_lrhc.environment.recording import Recorder, Recording
from rt_lrhc.environment.setup import Host
from rt_lrhc.environment.timing import Timing
from rt_lrhc.errors import ConfigurationError, EnvironmentStateError


class Controls:
    """The methods that the environments share; `_control` gives them what they work on."""

    _host: Host
    _config: RealTimeConfig
    _coverage: Coverage
    _benchmarks: Benchmarks | None
    _recorder: Recorder | None

    def _control(self, host: Host, config: RealTimeConfig, coverage: Coverage) -> None:
        self._host = host
        self._config = config
        self._coverage = coverage
        self._benchmarks = (
            Benchmarks(config.benchmark_type, config.benchmark_polyak) if config.benchmark else None
        )
        self._recorder = None

    def stop(self) -> None:
        """Let the running time-step end; on the wall clock the world then goes on, as it does for a late agent."""
        self._host.call(lambda engine: None)

    @property
    def timing(self) -> Timing:
        """What was measured on the wall clock."""
        return self._host.timing

    @property
    def clock(self) -> Clock:
        """The clock that this environment runs on, `"wall"` or `"virtual"`."""
        return self._host.clock

    def benchmarks(self) -> dict[str, Any]:
        """Return measured durations and delays, s, over the last 8192 time-steps.

        With `benchmark_type="polyak"`, a dictionary of (running average, average deviation): as rtgym has them
        `time_step_duration`, `step_duration`, `join_duration`, `inference_duration`, `send_control_duration` and
        `get_obs_duration`, besides `observation_age`, `action_age` and `send_lateness`. With `"trace"`, dictionaries of
        arrays: `clock` and `deltas`, as rtgym has them, and `delays`. In both, `act_buf_len` is (actions that the
        delays need, actions that the buffer has). NaN is "not measured"; on virtual time nothing of the clock is.

        Raises:
            ConfigurationError: If `benchmark` is not set in the configuration.
        """
        if self._benchmarks is None:
            raise ConfigurationError('benchmarks() needs config["benchmark"] = True')
        coverage = self._coverage
        needed = max(coverage.declared, coverage.measured)
        return self._benchmarks.result(self.timing.columns(), (needed, coverage.length))

    def start_recording(self) -> None:
        """Keep what is needed to replay, from the next reset on; see `recording()`."""
        self._recorder = Recorder(self._config, self._host.num_envs)

    def recording(self) -> Recording:
        """Return all that has happened since the last reset, to be saved and replayed.

        Raises:
            EnvironmentStateError: If `start_recording()` was not called before that reset.
            ConfigurationError: If the interface is a device, or the configuration cannot be written to a file.
        """
        if self._recorder is None:
            raise EnvironmentStateError("recording() needs a start_recording() before the reset")
        return self._recorder.recording(self.schedule())

    def _note(self, method: str, *arguments: Any) -> None:
        if self._recorder is not None:
            self._recorder.note(method, *arguments)

    def schedule(self) -> Schedule:
        """Return what took effect when since the last reset; `reset(options={"schedule": ...})` replays it."""
        return self._host.schedule()

    def set_time_step_duration(self, duration: float, time_step_timeout_factor: float | None = None) -> None:
        """Change the nominal time-step, s, and the lateness that one absorbs, in time-steps, from the next one on."""
        self._host.set_time_step_duration(duration, time_step_timeout_factor)
        self._coverage.set_durations(self._host.durations)
        self._note("set_time_step_duration", duration, time_step_timeout_factor)

    def set_start_obs_capture(self, start: float) -> None:
        """Change the start of the capture in a time-step, s, from the next one on."""
        self._host.set_start_obs_capture(start)
        self._coverage.set_durations(self._host.durations)
        self._note("set_start_obs_capture", start)

    def set_ep_max_length(self, length: float) -> None:
        """Change the number of time-steps after which an episode is truncated."""
        self._host.set_ep_max_length(length)
        self._note("set_ep_max_length", length)
