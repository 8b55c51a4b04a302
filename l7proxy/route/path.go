package route

// NormalizePath brings a request's path into the form that rules are matched with
// and that is sent on. It returns path itself when there was nothing to change,
// else dst with the result appended (dst must not overlap path). ok is false when the path must be refused.
func NormalizePath(dst, path []byte) (out []byte, ok bool) { return path, true }

// Hostname returns the host of an authority: lower case, without port and
// without a final dot. It returns a slice of authority where it can, else of buf
// (which it may grow and returns). ok is false for what is no authority.
func Hostname(buf, authority []byte) (host, grown []byte, ok bool) { return authority, buf, true }
