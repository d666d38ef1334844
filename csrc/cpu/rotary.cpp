#include "moments.h"
namespace act {
namespace ACT_ISA {
void rotary(DType, const Rotary&, const uint8_t*, int) {}
}
}
