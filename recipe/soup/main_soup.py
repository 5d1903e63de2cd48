"""Train with SOUP: `python -m recipe.soup.main_soup [platform=cpu] key=value ...`."""

import hydra
from omegaconf import DictConfig
from soup_verl.launch.supervise import run_supervised


@hydra.main(config_path="config", config_name="soup_trainer", version_base=None)
def main(config: DictConfig) -> None:
    run_supervised(config)


if __name__ == "__main__":
    main()
