"""MLX: mlx-lm's models and LoRA layers under our own loop.

Reading any module of it imports MLX; `trainer.training.mlx_presence` says whether that works here.
"""

from trainer.training.mlx_presence import import_mlx

import_mlx()
