"""`python -m rt_lrhc …` is `rt-lrhc …`."""

import sys

from rt_lrhc.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
