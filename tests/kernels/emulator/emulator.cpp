// What cuda_runtime.h declares, once for all kernels: the switch between fibers (x86-64, System V).
extern "C" int act_emulator_reversed = 0;
extern "C" void act_emulator_reverse(int reversed) { act_emulator_reversed = reversed; }

asm(R"(
.text
.globl act_emulator_switch
.type act_emulator_switch, @function
act_emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size act_emulator_switch, .-act_emulator_switch
)");
