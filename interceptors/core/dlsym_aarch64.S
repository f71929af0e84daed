/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dlsym_aarch64.S: the doors dlsym and dlvsym. Each asks its helper in resolve.c, which answers a value (x0) and where to go
 * on (x1). Nowhere: the value is the answer. Otherwise the real function is entered by a branch, with the arguments and the
 * link register as the caller left them: RTLD_NEXT and RTLD_DEFAULT go by that address, so a call from here would be
 * answered for us instead of for the caller.
 *
 * "hint #34" is "bti c" for assemblers that do not know it; a branch through x16 may land on one.
 */
#ifdef __aarch64__
    .text

    .globl dlsym
    .type dlsym, %function
    .p2align 4
dlsym:
    .cfi_startproc
    hint #34
    stp x29, x30, [sp, #-48]!
    .cfi_def_cfa_offset 48
    .cfi_offset x29, -48
    .cfi_offset x30, -40
    mov x29, sp
    stp x0, x1, [sp, #16]
    mov x2, x30
    bl hami_resolve_dlsym
    mov x9, x0
    mov x16, x1
    ldp x0, x1, [sp, #16]
    ldp x29, x30, [sp], #48
    .cfi_restore x30
    .cfi_restore x29
    .cfi_def_cfa_offset 0
    cbnz x16, 1f
    mov x0, x9
    ret
1:  br x16
    .cfi_endproc
    .size dlsym, . - dlsym

    .globl dlvsym
    .type dlvsym, %function
    .p2align 4
dlvsym:
    .cfi_startproc
    hint #34
    stp x29, x30, [sp, #-48]!
    .cfi_def_cfa_offset 48
    .cfi_offset x29, -48
    .cfi_offset x30, -40
    mov x29, sp
    stp x0, x1, [sp, #16]
    str x2, [sp, #32]
    mov x3, x30
    bl hami_resolve_dlvsym
    mov x9, x0
    mov x16, x1
    ldp x0, x1, [sp, #16]
    ldr x2, [sp, #32]
    ldp x29, x30, [sp], #48
    .cfi_restore x30
    .cfi_restore x29
    .cfi_def_cfa_offset 0
    cbnz x16, 1f
    mov x0, x9
    ret
1:  br x16
    .cfi_endproc
    .size dlvsym, . - dlvsym

    .hidden hami_resolve_dlsym
    .hidden hami_resolve_dlvsym

    /* Says that every indirect entry has its landing pad. */
    .section .note.gnu.property, "a", %note
    .p2align 3
    .long 4, 16, 5
    .string "GNU"
    .long 0xc0000000, 4, 1, 0
#endif
    .section .note.GNU-stack, "", %progbits
