"""What rl-zoo3's plots would draw nothing of."""

import argparse
from pathlib import Path


def check_has_runs(command: str, arguments: list[str]) -> None:
    """
    :param command: plot_train or all_plots, which would draw nothing, or zeros
    :param arguments: its
    :raises SystemExit: there is no run to draw; says why on stderr
    """
    parser = argparse.ArgumentParser(prog=f"sb3-shm {command}", add_help=False, usage=argparse.SUPPRESS)
    parser.add_argument("-a", "--algo", "--algos", nargs="+", default=[])
    parser.add_argument("-e", "--env", nargs="+", default=[])
    parser.add_argument("-f", "--exp-folder", "--exp-folders", nargs="+", default=[])
    args, _ = parser.parse_known_args(arguments)
    if {"-h", "--help"} & set(arguments):
        return
    for folder in args.exp_folder:
        if not Path(folder).is_dir():
            parser.error(f"there is no folder {folder}")
        for env in args.env:
            if not any(path for algo in args.algo for path in Path(folder, algo.lower()).glob(f"*{env.replace('/', '-')}*")):
                there = sorted({path.name.rpartition("_")[0] for path in Path(folder).glob("*/*_*")})
                parser.error(
                    f"{folder} has no run of {' or '.join(args.algo)} in {env}, but of {', '.join(there) or 'nothing'}"
                )
