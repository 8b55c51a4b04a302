//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* The one object: every program shares its maps and types. */

#include "socket.h"
#include "sockops.h"
#include "inbound.h"
#include "host.h"
#include "capture.h"

/* Types that no map names, so that the generator finds them. */
const struct {
	enum layout layout;
	enum capture_port capture_port;
	enum verdict verdict;
	enum hook hook;
	enum service_flags service_flags;
	enum membership membership;
	enum packet_count packet_count;
	struct event event;
} exported_types = {};

/* The kernel knows no word for our pair of licences; loaded, the GPL is the one that counts. */
char _license[] SEC("license") = "GPL";
