"""
An exported policy as a web service: JSON in, JSON out, and a memory for each user. It needs onnxruntime and numpy, no torch.

    python examples/serve_onnx.py agent.onnx
    curl -d '{"user": "ann", "obs": [0.1, -0.2], "start": true}' http://127.0.0.1:8000/act       # {"action": 0 or 1}
    curl -d '{"user": "ann", "obs": [0.1, -0.1]}' http://127.0.0.1:8000/act

``start`` begins an episode, and with it an empty memory. agent.onnx is what sb3_shm.sharing.export.export_onnx wrote.
"""

import argparse
import json
import math
from collections import OrderedDict
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any

import numpy as np
import onnxruntime

DTYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(int64)": np.int64, "tensor(uint8)": np.uint8}
MAX_NAME = 256  # characters of a user's name
FORM = 'send {"user": "a name", "obs": [numbers], "start": true or false}'


class Agent:
    """
    :param path: file of the policy
    :param max_users: who was away for longest is forgotten first
    """

    def __init__(self, path: str, max_users: int) -> None:
        self.session = onnxruntime.InferenceSession(path)
        self.inputs = {i.name: (i.shape[1:], DTYPES[i.type]) for i in self.session.get_inputs() if i.name.startswith("obs")}
        states = [i for i in self.session.get_inputs() if i.name.startswith("state.")]
        self.empty = {i.name: np.zeros((1, *i.shape[1:]), DTYPES[i.type]) for i in states}
        # A number of JSON has 25 characters at most, unless somebody wants to make work
        self.max_body = 2**14 + 32 * sum(math.prod(shape) for shape, _ in self.inputs.values())
        self.max_users = max_users
        self.states: OrderedDict[str, dict[str, np.ndarray]] = OrderedDict()
        self.lock = Lock()

    def act(self, request: Any) -> Any:
        """
        :param request: {"user": text, "obs": numbers, or a mapping of them for Dict observations, "start": bool}
        :return: the action, numbers
        :raises ValueError: the request is wrong, says how
        :raises KeyError: no such user, who has never begun an episode or was forgotten
        """
        if not isinstance(request, dict) or not isinstance(request.get("user"), str) or "obs" not in request:
            raise ValueError(FORM)
        user = request["user"]
        if len(user) > MAX_NAME:
            raise ValueError(f"user must have at most {MAX_NAME} characters")
        start = request.get("start", False)
        if not isinstance(start, bool):
            raise ValueError("start must be true or false")
        feed = {}
        for name, (shape, dtype) in self.inputs.items():
            try:
                value = request["obs"] if name == "obs" else request["obs"][name.removeprefix("obs.")]
                numbers = np.asarray(value)
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{name} must be numbers of shape {shape}: {error}") from error
            if numbers.dtype.kind not in "biuf" or list(numbers.shape) != shape:
                raise ValueError(
                    f"{name} must be numbers of shape {shape}, got the shape {list(numbers.shape)}, {numbers.dtype}"
                )
            with np.errstate(all="ignore"):
                feed[name] = numbers.astype(dtype)[None]
            # Numbers that are too large for the type, or fractions where there are none
            if not np.isfinite(feed[name]).all() or (np.issubdtype(dtype, np.integer) and (feed[name] != numbers).any()):
                raise ValueError(f"{name} must be finite numbers of shape {shape} and type {np.dtype(dtype)}")
        with self.lock:  # a step takes less than 0.1 ms
            state = self.empty if start else self.states[user]
            action, *after = self.session.run(None, {**feed, **state, "episode_start": np.array([start])})
            self.states[user] = dict(zip(state, after, strict=True))
            self.states.move_to_end(user)
            if len(self.states) > self.max_users:
                self.states.popitem(last=False)
        return action[0].tolist()


def make_handler(agent: Agent) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 30  # seconds; who sends nothing does not hold a thread for ever

        def do_POST(self) -> None:
            status, answer = 200, {}
            try:
                length = int(self.headers.get("Content-Length", 0))
                if self.path != "/act":
                    status, answer = 404, {"error": "POST to /act"}
                elif not 0 <= length <= agent.max_body:
                    status, answer = 413, {"error": f"at most {agent.max_body} bytes"}
                else:
                    answer = {"action": agent.act(json.loads(self.rfile.read(length)))}
            except KeyError as error:
                status, answer = 409, {"error": f'no episode of user {error} is running: send "start": true first'}
            except (json.JSONDecodeError, UnicodeDecodeError):
                status, answer = 400, {"error": f"this is no JSON: {FORM}"}
            except (ValueError, RecursionError) as error:
                status, answer = 400, {"error": str(error)}
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    return Handler


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="what export_onnx wrote")
    parser.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 is every interface: put a server with passwords before it"
    )
    parser.add_argument("--port", type=int, default=8000, help="0 for any that is free")
    parser.add_argument("--max-users", type=int, default=10_000, help="whose memories are kept")
    args = parser.parse_args()
    try:
        agent = Agent(args.model, args.max_users)
    except Exception as error:  # onnxruntime's own have nothing in common
        parser.error(f"{args.model} is no policy that export_onnx wrote: {error}")
    with ThreadingHTTPServer((args.host, args.port), make_handler(agent)) as server:
        print(f"http://{args.host}:{server.server_port}/act", flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()
