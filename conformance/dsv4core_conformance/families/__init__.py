"""The case families, one module each; `dsv4core_conformance.case.load_cases` imports them all."""
