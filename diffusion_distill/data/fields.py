"""The fields of a config's `data` section that messages name; `data.prepare` has flags for them."""

from diffusion_distill.errors import Field

NAME = Field("config.data.name")
PATH = Field("config.data.path")
SPLIT = Field("config.data.split")
TFDS_NAME = Field("config.data.tfds_name")
IMAGE_SIZE = Field("config.data.image_size")
RESIZE = Field("config.data.resize")
CHANNELS = Field("config.data.channels")
FOLDER_LABELS = Field("config.data.folder_labels")
