package main

import (
	"bufio"
	"io"
	"strings"
	"unicode/utf8"
)

// The colours of a table, as terminals number them (ECMA-48 SGR).
const (
	plain  = ""
	bold   = "1"
	faint  = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
	cyan   = "36"
)

// cell is one field of a table.
type cell struct {
	text  string
	color string
}

// table is rows of text in aligned columns.
type table struct {
	header []string
	rows   [][]cell
}

// add appends a row of strings and cells.
func (t *table) add(fields ...any) {
	row := make([]cell, len(fields))
	for i, f := range fields {
		switch f := f.(type) {
		case cell:
			row[i] = f
		case string:
			row[i] = cell{text: f}
		}
		row[i].text = printable(row[i].text)
		if row[i].text == "" {
			row[i].text = "-"
		}
	}
	t.rows = append(t.rows, row)
}

// columnGap is the space between columns.
const columnGap = 2

// write prints the table; the header is left out if it is nil.
func (t *table) write(w io.Writer, colored bool) error {
	rows := t.rows
	if t.header != nil {
		head := make([]cell, len(t.header))
		for i, h := range t.header {
			head[i] = cell{text: h, color: bold}
		}
		rows = append([][]cell{head}, rows...)
	}
	var widths []int
	for _, row := range rows {
		for i, c := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(c.text))
		}
	}
	b := bufio.NewWriter(w)
	for _, row := range rows {
		for i, c := range row {
			b.WriteString(paint(c.text, c.color, colored))
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c.text)+columnGap))
			}
		}
		b.WriteByte('\n')
	}
	return b.Flush()
}

// paint returns the text in a colour, if colours are wanted.
func paint(text, color string, colored bool) string {
	if !colored || color == plain || text == "" {
		return text
	}
	return "\x1b[" + color + "m" + text + "\x1b[0m"
}
