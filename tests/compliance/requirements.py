"""What SQLite can and cannot do, for SQLAlchemy's suite; the same for the stock driver and ours."""

from sqlalchemy.testing import exclusions
from sqlalchemy.testing.requirements import SuiteRequirements

CAN = """
    async_dialect autocommit boolean_col_expressions check_constraint_reflection
    computed_columns computed_columns_reflect_persisted computed_columns_stored
    computed_columns_virtual create_table_as create_temp_table_as ctes ctes_with_values
    date_historic datetime_historic datetime_literals dbapi_lastrowid emulated_lastrowid except_
    expression_server_defaults fetch_expression fetch_offset_with_options
    fk_constraint_option_reflection_ondelete_noaction
    fk_constraint_option_reflection_ondelete_restrict
    fk_constraint_option_reflection_onupdate_restrict
    float_or_double_precision_behaves_generically foreign_key_constraint_name_reflection
    foreign_key_constraint_option_reflection_ondelete
    foreign_key_constraint_option_reflection_onupdate
    index_ddl_if_exists indexes_check_column_order indexes_with_expressions infinity_floats
    inline_check_constraint_reflection intersect isolation_level json_array_indexes json_type
    legacy_unconditional_json_extract mod_operator_as_percent_sign non_updating_cascade
    nullsordering nvarchar_types order_by_collation order_by_label_with_expression
    percent_schema_names precision_numerics_enotation_small
    precision_numerics_retains_significant_digits reflect_table_options reflects_pk_names
    regexp_match repeated_column_foreign_keys repeated_remote_col_foreign_keys server_defaults
    skip_autocommit_rollback supports_bitwise_and supports_bitwise_not supports_bitwise_or
    supports_bitwise_shift supports_bitwise_xor table_ddl_if_exists tuple_in tuple_in_w_empty
    unicode_ddl unique_constraint_reflection update_from view_column_reflection view_reflection
    views window_functions window_range window_range_numeric
"""

CANNOT = """
    implicitly_named_constraints json_index_supplementary_unicode_element nested_aggregates
    numeric_received_as_decimal_untyped on_update_cascade on_update_or_deferrable_fks
    parens_in_union_contained_select_w_limit_offset
    parens_in_union_contained_select_wo_limit_offset predictable_gc
    temp_table_reflect_indexes temp_table_reflection temporary_tables has_temp_table
    temp_table_names temporary_views independent_connections
"""


class Requirements(SuiteRequirements):
    """The suite's defaults, with the names above opened and closed."""

    def get_isolation_levels(self, config):
        """SQLite has these two, and AUTOCOMMIT."""
        return {
            "default": "SERIALIZABLE",
            "supported": ["READ UNCOMMITTED", "SERIALIZABLE", "AUTOCOMMIT"],
        }

    def get_order_by_collation(self, config):
        """A collation every SQLite has."""
        return "NOCASE"


for _name in CAN.split():
    setattr(Requirements, _name, property(lambda self: exclusions.open()))
for _name in CANNOT.split():
    setattr(Requirements, _name, property(lambda self: exclusions.closed()))
