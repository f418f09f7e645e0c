"""How to normalise, and how to do it fast: the equations, and the same in C++, Triton and autograd."""
