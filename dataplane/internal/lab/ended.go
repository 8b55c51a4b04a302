package lab

// RecvError receives once and returns the error, nil if there was none.
func (a *App) RecvError(fd int) error {
	a.t.Helper()
	_, err := a.call(call{Op: "recv", FD: fd})
	return err
}
