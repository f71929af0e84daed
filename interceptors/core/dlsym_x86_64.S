/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dlsym_x86_64.S: the doors dlsym and dlvsym. Each asks its helper in resolve.c, which answers a value (rax) and where to go
 * on (rdx). Nowhere: the value is the answer. Otherwise the real function is entered by a jump, with the arguments and the
 * return address as the caller left them: RTLD_NEXT and RTLD_DEFAULT go by that address, so a call from here would be
 * answered for us instead of for the caller.
 */
#ifdef __x86_64__
    .text

    .globl dlsym
    .type dlsym, @function
    .p2align 4
dlsym:
    .cfi_startproc
    endbr64
    subq $24, %rsp
    .cfi_adjust_cfa_offset 24
    movq %rdi, (%rsp)
    movq %rsi, 8(%rsp)
    movq 24(%rsp), %rdx
    call hami_resolve_dlsym
    movq (%rsp), %rdi
    movq 8(%rsp), %rsi
    addq $24, %rsp
    .cfi_adjust_cfa_offset -24
    testq %rdx, %rdx
    jne 1f
    ret
1:  jmp *%rdx
    .cfi_endproc
    .size dlsym, . - dlsym

    .globl dlvsym
    .type dlvsym, @function
    .p2align 4
dlvsym:
    .cfi_startproc
    endbr64
    subq $24, %rsp
    .cfi_adjust_cfa_offset 24
    movq %rdi, (%rsp)
    movq %rsi, 8(%rsp)
    movq %rdx, 16(%rsp)
    movq 24(%rsp), %rcx
    call hami_resolve_dlvsym
    movq %rdx, %r11
    movq (%rsp), %rdi
    movq 8(%rsp), %rsi
    movq 16(%rsp), %rdx
    addq $24, %rsp
    .cfi_adjust_cfa_offset -24
    testq %r11, %r11
    jne 1f
    ret
1:  jmp *%r11
    .cfi_endproc
    .size dlvsym, . - dlvsym

    .hidden hami_resolve_dlsym
    .hidden hami_resolve_dlvsym

    /* Says that every indirect entry has its endbr64 and that the shadow stack is kept. */
    .section .note.gnu.property, "a", @note
    .p2align 3
    .long 4, 16, 5
    .string "GNU"
    .long 0xc0000002, 4, 3, 0
#endif
    .section .note.GNU-stack, "", %progbits
