"""The pages of `report` and `compare`, and where matplotlib caches its fonts: a temporary folder of this process.

The folder is set here, before any module of the package imports matplotlib. By default matplotlib makes
~/.config/matplotlib and a cache beside it, outside the project, and warns on stderr when the disk is full. So the font
list is built at each start: 0.1 to 0.2 s with 58 fonts. The user's matplotlibrc is not read either, and the charts are
the same for everybody. A user's MPLCONFIGDIR is respected.
"""
import atexit
import logging
import os
import shutil
import tempfile


def isolate_font_cache() -> None:
    if "MPLCONFIGDIR" in os.environ:
        return
    folder, owner = tempfile.mkdtemp(prefix="matplotlib."), os.getpid()
    os.environ["MPLCONFIGDIR"] = folder
    # Hide "Matplotlib is building the font cache; this may take a moment", which is now true at every start.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)

    def remove() -> None:
        if os.getpid() == owner:  # not a process forked from it
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)


isolate_font_cache()
