//! Elastic tab stops, as Go's `text/tabwriter` sets them with spaces for padding.
//!
//! A cell is text that a tab ends; the text after a line's last tab belongs to no column. A
//! column is a run of neighbouring lines that have a cell at that place, and is as wide as
//! its widest cell plus the padding.

/// Widths used by nearly all of Docker's tables.
pub const TABLE: Tabs = Tabs {
    minimum: 10,
    padding: 3,
};

/// The widths of a table.
#[derive(Clone, Copy, Debug)]
pub struct Tabs {
    /// The least width of a column, padding included.
    pub minimum: usize,
    /// Spaces after the widest cell.
    pub padding: usize,
}

impl Tabs {
    /// Lays out `text`.
    pub fn align(self, text: &str) -> String {
        let (body, trailing_newline) = match text.strip_suffix('\n') {
            Some(body) => (body, true),
            None => (text, false),
        };
        let lines: Vec<Vec<&str>> = body.split('\n').map(|l| l.split('\t').collect()).collect();
        let mut widths: Vec<Vec<usize>> = lines.iter().map(|l| vec![0; l.len() - 1]).collect();
        let deepest = lines.iter().map(|l| l.len() - 1).max().unwrap_or(0);
        for column in 0..deepest {
            let mut start = 0;
            while start < lines.len() {
                let has = |line: usize| lines[line].len() - 1 > column;
                if !has(start) {
                    start += 1;
                    continue;
                }
                let end = (start..lines.len())
                    .find(|&l| !has(l))
                    .unwrap_or(lines.len());
                let widest = (start..end).map(|l| lines[l][column].chars().count()).max();
                let width = (widest.unwrap_or(0) + self.padding).max(self.minimum);
                for line in &mut widths[start..end] {
                    line[column] = width;
                }
                start = end;
            }
        }
        let mut out = String::with_capacity(text.len() * 2);
        for (index, (cells, widths)) in lines.iter().zip(&widths).enumerate() {
            if index > 0 {
                out.push('\n');
            }
            for (column, cell) in cells.iter().enumerate() {
                out.push_str(cell);
                if let Some(width) = widths.get(column) {
                    let used = cell.chars().count();
                    out.extend(std::iter::repeat_n(' ', width.saturating_sub(used)));
                }
            }
        }
        if trailing_newline {
            out.push('\n');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let text = "ID\tIMAGE\tNAMES\nc0ffee\tbusybox:latest\tone\n";
        assert_eq!(
            TABLE.align(text),
            "ID        IMAGE            NAMES\nc0ffee    busybox:latest   one\n"
        );
    }

    #[test]
    fn a_line_without_cells_ends_a_column() {
        let tabs = Tabs {
            minimum: 0,
            padding: 1,
        };
        assert_eq!(
            tabs.align("long cell\tx\nplain\na\tb"),
            "long cell x\nplain\na b"
        );
        assert_eq!(tabs.align(""), "");
        assert_eq!(tabs.align("é\tx\nee\ty\n"), "é  x\nee y\n");
    }
}
