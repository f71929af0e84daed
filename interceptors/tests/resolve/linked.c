/* SPDX-License-Identifier: Apache-2.0 */
/* linked.c: linked against the made-up driver. */
#include <stdio.h>

int toyAlloc(int value);
int toyPlain(int value);

int linked(void) {
    return toyAlloc(0);
}

#ifdef PROGRAM
int main(void) {
    printf("%d %d\n", toyAlloc(0), toyPlain(0));
    return 0;
}
#endif
