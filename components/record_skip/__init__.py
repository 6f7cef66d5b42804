from components.record_skip.component import record_skip as record_skip
