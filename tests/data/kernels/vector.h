#pragma once
#define TWICE(x) ((x) + (x))
