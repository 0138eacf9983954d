"""An exporter's processor that begins to compute wrongly while a file lies in a certain place.

The compiled kernel in a cache is replaced by a library that hands every call on to the sound one
and then, while that file is there, turns bits of what was encoded. So the kernel proves itself at
the start, as on a machine that is still well.
"""

import shutil
import subprocess
from pathlib import Path

SOURCE = r"""
#include <dlfcn.h>
#include <stdint.h>
#include <unistd.h>

static void *sound(const char *name) {
  static void *library;
  if (!library) library = dlopen(SOUND, RTLD_NOW | RTLD_LOCAL);
  return dlsym(library, name);
}
int kquant_encode(int type, const void *in, uint8_t *out, int64_t blocks, uint8_t *left) {
  int (*encode)(int, const void *, void *, int64_t, void *) = sound("kquant_encode");
  int answer = encode(type, in, out, blocks, left);
  if (access(ILL, F_OK) == 0)
    for (int64_t block = 0; block < blocks; block++) out[64 * block] ^= 0x15;
  return answer;
}
int merge_rows_of_base(int type, int stored, const void *base, const void *a, const void *b,
                       double scale, const void *magnitude, void *out, int64_t rows,
                       int64_t columns, int64_t rank) {
  int (*merge)(int, int, const void *, const void *, const void *, double, const void *, void *,
               int64_t, int64_t, int64_t) = sound("merge_rows_of_base");
  return merge(type, stored, base, a, b, scale, magnitude, out, rows, columns, rank);
}
"""


def replace_kernels(kernels: Path, *, ill: Path) -> int:
    """Replaces the kernels of a cache; returns how many there were.

    Args:
        ill: while this file is there, they compute wrongly.
    """
    found = list(kernels.glob("kernel-*.so"))
    for path in found:
        sound = path.with_name(f"sound-{path.name}")
        shutil.move(path, sound)
        source = path.with_suffix(".c")
        source.write_text(SOURCE)
        places = [f'-DSOUND="{sound}"', f'-DILL="{ill}"']
        command = ["cc", "-shared", "-fPIC", "-O1", *places, "-o", str(path), str(source), "-ldl"]
        subprocess.run(command, check=True, capture_output=True)
    return len(found)
