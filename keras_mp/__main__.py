"""``python -m keras_mp``."""

import sys

from keras_mp.cli import main

if __name__ == "__main__":
    sys.exit(main())
