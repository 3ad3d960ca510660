/* SPDX-License-Identifier: GPL-2.0-only */
/* The headers under test need nothing of it. */
#include <linux/types.h>
