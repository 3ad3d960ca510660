// SPDX-License-Identifier: GPL-2.0-only
//
// The guest's code, 32 bits without paging: a page for vm.rs. On entry, EBX is the address of the vCPU's
// own page: KVM's record (0), the guest's copy (32), TSC (64), deadline (72), fired (80).

	.pushsection .rodata.vmm_sample, "a", @progbits
	.balign 8
vmm_sample_guest:
	.code32
	xor edx, edx
	mov ecx, 0x80f		// Enable the local APIC,
	mov eax, 0x1ff
	wrmsr
mov ecx, 0x832		// and its timer in TSC-deadline mode with vector 0x40.
	mov eax, 2 << 17 | 0x40
	wrmsr
mov ecx, 0x4b564d01	// MSR_KVM_SYSTEM_TIME_NEW: the address of the record.
	lea eax, [ebx + 1]
	wrmsr
rdtsc			// The timer fires in 2^32 ticks.
	inc edx
	mov [ebx + 72], eax
	mov [ebx + 76], edx
	mov ecx, 0x6e0		// MSR_IA32_TSC_DEADLINE
	wrmsr
2:	mov ecx, 0x822		// Has it fired? Interrupts are disabled, so its IRR bit stays set.
	rdmsr
	and eax, 1
	mov [ebx + 80], eax
3:	mov ebp, [ebx]		// Read record and TSC: the version is even and the same before and after.
	lfence
	rdtsc
	lfence
	mov [ebx + 64], eax
	mov [ebx + 68], edx
	mov esi, ebx
	lea edi, [ebx + 32]
	mov ecx, 8
	rep movsd
	cmp ebp, [ebx]
	jne 3b
	test ebp, 1
	jnz 3b
out 0, al		// Exit to the VMM, and repeat when it runs the vCPU again.
	jmp 2b
	.code64
	.org vmm_sample_guest + 4096
	.popsection
