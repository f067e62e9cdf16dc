// Package bench measures gvstream beside what a user would take instead of it, on
// the same work in one process. It consists of benchmarks and the tests of their
// adapters: README.md says what is compared, and compare.sh runs it.
package bench
