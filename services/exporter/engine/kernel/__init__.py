"""K-quants faster than llama.cpp's own and equal to them: a C++ kernel, compiled once per machine.

C++ rather than a just-in-time compiler, because the machines that run this have a compiler anyway
(it built llama.cpp), the kernel compiles in seconds, loads in a millisecond and costs no 150 MB of
dependencies. Where nothing compiles, or where one byte differs, llama.cpp's function does the work.
"""
