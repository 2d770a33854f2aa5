// CUDA's own header of this name; all of it is in probe_emulation.hpp, which comes before every source.
#pragma once
