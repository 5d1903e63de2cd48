"""Train with SOUP: `python -m recipe.soup.main_soup [platform=cpu] key=value ...`."""

import os
import sys

import hydra
from omegaconf import DictConfig
from recipe.soup.main_series import compose
from soup_verl.launch.overrides import REFUSED, reason
from soup_verl.launch.supervise import run_supervised


@hydra.main(config_path="config", config_name="soup_trainer", version_base=None)
def train(config: DictConfig) -> None:
    run_supervised(config)


def main() -> None:
    """Hydra's own lines advise to add a mistyped key: what it does not take is told in one line here."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # it raises
    try:
        train()
    except REFUSED as error:
        sys.exit(f"error: {reason(error, compose)}")


if __name__ == "__main__":
    main()
