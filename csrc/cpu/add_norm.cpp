#include "moments.h"
namespace act {
namespace ACT_ISA {
void add_norm(DType, const AddNorm&, const uint8_t*, int) {}
}
}
