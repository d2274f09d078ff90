"""Compiled programs, kept between runs: the second start of a command compiles nothing anew."""

import os

import jax

from rar_jax.files import cache_folder


def keep_compiled_programs() -> None:
    """Turns JAX's persistent compilation cache on, in the user's cache; JAX_COMPILATION_CACHE_DIR names another folder.

    JAX keeps what took a second to compile; here it is a tenth, as a start compiles many small programs. An entry's key
    is the program, its options, the devices and the version of JAX.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
