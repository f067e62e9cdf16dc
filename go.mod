module github.com/vibetools/gvstream

go 1.26.0
