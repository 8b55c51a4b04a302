/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* Generated from observe/flow/reason.go by go generate; do not edit. */
#pragma once

enum reason {
	REASON_NONE = 0,
	REASON_NO_ENDPOINT = 1,
	REASON_CAPTURE_PORT = 2,
	REASON_PROXY_UNAVAILABLE = 3,
	REASON_FOREIGN_NAMESPACE = 4,
	REASON_MAP_FULL = 5,
	REASON_LISTENER_CLOSED = 6,
	REASON_BIND_RESERVED = 7,
	REASON_SPOOFED_SOURCE = 8,
	REASON_UNEXPECTED_FRAME = 9,
	REASON_NO_LOCAL_ENDPOINT = 10,
};
