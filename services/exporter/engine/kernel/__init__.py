"""The two inner loops of an export, faster than the reference and equal to it, bit for bit.

C++ rather than a just-in-time compiler, because the machines that run this have a compiler anyway
(it built llama.cpp), the kernel compiles in seconds, loads in a millisecond and costs no 150 MB of
dependencies. Where nothing compiles, or where one byte differs, llama.cpp and numpy do the work.
"""
