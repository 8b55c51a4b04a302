package forward

// Classify has the table do as on a kernel without tcx.
func (t *Table) Classify() { t.classifies = true }
