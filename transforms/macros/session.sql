{# What a session must be told to compute as Tributary does: failing casts and overflows fail, and days begin in UTC. #}
{% macro tributary_time_zone() -%}
  {%- if target.type in ('spark', 'databricks') %}set time zone 'UTC'{% endif -%}
{%- endmacro %}


{% macro tributary_ansi() -%}
  {%- if target.type == 'spark' %}set spark.sql.ansi.enabled = true{% endif -%}
  {%- if target.type == 'databricks' %}set ansi_mode = true{% endif -%}
{%- endmacro %}
